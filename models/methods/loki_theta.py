"""Loki-Theta: calibrated thresholds on low-rank scores choose the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...kernels.fill_missing import OP as FILL_MISSING
from ...kernels.theta_rows import OP as THETA_ROWS
from ...kernels.tiling import gather_plan, multiprocessors, theta_segments
from ...results import rules
from ...results.fields import ByteCount, Keep, Needs, RowCount, Share, Within
from .. import attend, many, running, threshold
from ..budget import Allowance, Cost, amount_of, asks_for_gaps, rows_once, widest
from ..call import Call
from ..landing import Landing
from ..ledger import Ledger
from ..memory import Memory, Site
from ..method import Method
from .loki import Loki


@dataclass(frozen=True)
class LokiTheta(Method):
    """Rows whose low-rank score exceeds a calibrated threshold are attended exactly: Loki's reads without a top-k.

    New here: the scores of Loki (arXiv 2406.02542) under the thresholds of Top-Theta (arXiv 2502.08363), calibrated for
    each layer, head and row length on those same scores. A row's own count may stray from k, so it is bounded: where
    fewer than `least` k rows exceed the threshold, or more than `most` k, so many of the largest are taken; only there
    is a selection needed. With least = most = 1 this is Loki. Rows of at most k tokens stay dense.

    The low-rank scores of the rows dropped are known anyway, so they say at no further read which share of the weight
    those rows would have had (`sdc: lowrank`, their mass times `sdc_scale`): the share in the softmax of the low-rank
    scores themselves, since these lie apart from exact ones by much that all rows have in common (the keys' mean along
    the other components). With `vmc: mean` the causal mean of the values gets that share; without, the output shrinks.

    Keeps everything: keys rotated by the basis, their leading d components once more in rows of their own. Reads d
    components of every key, key and value of the rows chosen, the basis, one threshold a head, one sum of values.

    Arguments: what thresholds aim at, k rows: `keep` a share of the row's causal length, `rows` a count, or `bytes`
    that a layer reads for a row, leading components included; `d` leading components, a share of the head dimension or
    a count; `heads: kv` chooses for the query heads of a key/value head by their largest score, `query` for each;
    `between` how thresholds go on between calibrated lengths; `basis` and `thresholds` the two calibrations, the second
    of which stands on the first.
    """

    keep: Keep = 0.25
    rows: RowCount = None
    bytes: ByteCount = None
    d: Annotated[int | float, Share("the head dimension")] = 0.25
    heads: Literal["kv", "query"] = "kv"
    least: Annotated[float, Within(0, 1)] = 0.5
    most: Annotated[float, Within(1)] = 2.0
    sdc: Literal["lowrank", "none"] = "lowrank"
    sdc_scale: Annotated[float, Within(0, open_low=True)] = 1.0
    vmc: Literal["mean", "none"] = "mean"
    between: Literal["linear", "nearest"] = "linear"
    basis: Annotated[Mapping[str, Any], Needs("pca")] = field(default_factory=dict)
    thresholds: Annotated[
        Mapping[str, Any], Needs("thresholds", same=("keep", "rows", "bytes", "heads", "d", "basis"))
    ] = field(default_factory=dict)
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "select"
    by_length: ClassVar[tuple[str, ...]] = ("theta",)

    def __post_init__(self) -> None:
        rules.one_budget(self)
        idle = self.sdc == "none" and (self.vmc == "mean" or self.sdc_scale != 1)
        rules.refuse(self, when=idle, why="sdc: none lacks no weight: set vmc: none and leave sdc_scale at 1")

    def room(self, memory: Memory, steps: int) -> int:
        """A row a step; where each query head chooses, it goes through masks."""
        return steps if self.heads == "kv" else super().room(memory, steps)

    def expects_gaps(self) -> bool:
        """A share of 1 in every layer asks for everything."""
        return asks_for_gaps(self)

    @property
    def _loki(self) -> Loki:
        return Loki(d=self.d)

    def constants(self, site: Site) -> Mapping[str, Tensor]:
        """This rank's basis, as Loki has it."""
        return self._loki.constants(site)

    def tables(self, site: Site) -> Mapping[str, Tensor]:
        """Thresholds [N, L]."""
        return {"theta": threshold.read_table(site, "lowrank", self.between)}

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """As Loki writes, and sum the values where their mean is asked for."""
        if self.vmc == "mean":
            running.add(memory, v_BGTD)
        self._loki.write(memory, k_BGTD, v_BGTD)

    def landing(self, memory: Memory) -> Landing:
        """The same of a single row, in one launch."""
        landing = self._loki.landing(memory)
        return replace(landing, sums=memory.extra[running.SUM]) if self.vmc == "mean" else landing

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Dense, in the basis."""
        return super().attend_dense(self._loki.project(q_BHTD, memory), memory, call, ledger)

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Compare low-rank scores, attend what is left: one row through ops, many through masks."""
        q = q_BHTD if call.query_in == "memory" else self._loki.project(q_BHTD, memory)
        if call.new == 1 and self.heads == "kv" and ledger.watch is None:
            return self._one(q, memory, call, ledger)
        if ledger.watch is None and many.fits(q, memory, call):
            return self._many(q, memory, call, ledger).to(q_BHTD.dtype)
        parts = [self._rows(q, memory, call, rows) for rows in attend.pieces(call)]
        out, lack, keep = (torch.cat(part, 2) for part in zip(*parts, strict=True))
        ledger.chosen(memory, call, q, keep)
        self._count(memory, call, ledger, attend.union_BGT(keep, memory.keys.view.shape[1]))
        return self._compensated(out, lack, memory, call).to(q_BHTD.dtype)

    def _compensated(self, out_BHTD: Tensor, lack_BHT: Tensor, memory: Memory, call: Call) -> Tensor:
        if self.vmc == "mean":
            mean = threshold.per_head(running.mean_BGTD(memory, call), out_BHTD.shape[1])
            out_BHTD = out_BHTD + lack_BHT[..., None] * mean
        return out_BHTD.masked_fill(call.once("empty", lambda: call.context_BT[:, None, :, None] == 0), 0)

    def _one(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        lead, (lo, hi) = memory.aux["lead"].view, attend.span(memory, call)
        key = (amount_of(self, memory.site), self._cost(memory, call))
        least, most = call.once(("bounds", key), lambda: self._row_bounds(memory, call))
        theta = threshold.of_row(memory, "theta", call, lead.shape[1])
        index, count, share = THETA_ROWS(
            q_BHTD[:, :, 0, : lead.shape[-1]], lead, lo, hi, call.scale, theta, least, most,
            self._segments(memory, call),
        )  # fmt: skip
        ledger.count_parts(memory, call, count, self._beside(memory, call))
        out = attend.gathered(q_BHTD, memory, index, count, call)
        if self.sdc == "none":
            return out
        sums = memory.extra[running.SUM][:, :, 0] if self.vmc == "mean" else None
        seen = call.context_BT[:, 0]
        return FILL_MISSING(out[:, :, 0], share, sums, seen, self.sdc_scale)[:, :, None]

    def _many(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        lead = memory.aux["lead"].view
        how, ranked = "max" if self.heads == "kv" else "none", (q_BHTD[..., : lead.shape[-1]], lead)
        theta = threshold.look_up(memory.constants["theta"], call, lead.shape[1] if how == "max" else q_BHTD.shape[1])
        dense, least, most = (part[:, None] for part in self._bounds(memory, call))
        theta = theta.masked_fill(dense, -torch.inf)
        count = many.count_above(ranked, call, theta, how)
        wanted, safe = count.clamp(least, most), self._safely_most(memory, call)[:, None]
        stray = count.clamp(least, safe) != count
        if bool(stray.any()):  # only those rows need a selection
            kth, after = many.border(*ranked, wanted.masked_fill(~stray, -1), call, how)
            theta = torch.where(stray, (kth + after) / 2, theta)
        kept = many.above(q_BHTD, memory, call, theta, how, rank=ranked, weigh="ranks")
        self._count(memory, call, ledger, kept.read_BGT)
        dropped = (kept.total_BHT - kept.kept_BHT).clamp(min=0) * (0.0 if self.sdc == "none" else self.sdc_scale)
        lack = dropped / (kept.kept_BHT + dropped).clamp(min=torch.finfo(dropped.dtype).tiny)
        return self._compensated(kept.out_BHTD.float() * (1 - lack)[..., None], lack, memory, call)

    def _segments(self, memory: Memory, call: Call) -> int:
        """Blocks that share the rows of a set, each with its own part of the index."""
        values = memory.values.view
        aimed = widest(self, memory.site, values.shape[2], self._cost(memory, call))
        pairs, count = values.shape[0] * values.shape[1], multiprocessors(values.device)
        plan = gather_plan(pairs, aimed, values.shape[3], values.element_size(), count)
        return theta_segments(pairs, values.shape[2], plan, count)

    def _rows(self, q_BHTD: Tensor, memory: Memory, call: Call, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Output [B, H, t, D], share of weight that lacks [B, H, t], rows kept [B, N, t, S], of some query rows."""
        seen = attend.visible_BTS(memory, call, rows)[:, None]
        q, lead = q_BHTD[:, :, rows], memory.aux["lead"].view
        low = attend.group_scores(q[..., : lead.shape[-1]], lead, "none") * call.scale
        low = low.masked_fill(~seen, -torch.inf)
        keep = self._keep(low, seen, memory, call, rows)
        kept = threshold.per_head(keep, low.shape[1])
        exact = attend.group_scores(q, memory.keys.view, "none") * call.scale
        out, _ = threshold.weighted(_exponents(exact.masked_fill(~kept, -torch.inf)), low.new_zeros(()), memory)
        lack = self._lack(_exponents(low), kept)
        return out * (1 - lack)[..., None], lack, keep

    def _lack(self, low_BHTS: Tensor, kept_BHTS: Tensor) -> Tensor:
        """The share of weight on rows dropped, as low-rank scores have it, [B, H, t]."""
        if self.sdc == "none":
            return low_BHTS.new_zeros(low_BHTS.shape[:3])
        dropped = (low_BHTS * ~kept_BHTS).sum(-1) * self.sdc_scale
        return dropped / ((low_BHTS * kept_BHTS).sum(-1) + dropped).clamp(min=torch.finfo(dropped.dtype).tiny)

    def _keep(self, low_BHTS: Tensor, seen_B1TS: Tensor, memory: Memory, call: Call, rows: slice) -> Tensor:
        """The rows to attend, [B, N, t, S]."""
        rank = threshold.over_group(low_BHTS, memory.keys.view.shape[1], self.heads)
        theta = threshold.look_up(memory.constants["theta"], call, rank.shape[1])[..., rows]
        dense, least, most = (part[:, rows] for part in self._bounds(memory, call))
        above = seen_B1TS & ((rank > theta[..., None]) | dense[:, None, :, None])
        return threshold.choose(rank, above, least, most)

    def _bounds(self, memory: Memory, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Which query rows stay dense, and the fewest and most rows that each may choose; all [B, T]."""
        key = ("least and most", amount_of(self, memory.site), self._cost(memory, call))
        return call.once(key, lambda: self._bounds_of_rows(memory, call))

    def _bounds_of_rows(self, memory: Memory, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        context, k = call.context_BT, self._aim(memory, call)
        dense = context <= k
        least = torch.where(dense, context, (k * self.least).floor().long().clamp(min=1))
        return dense, least, (k * self.most).ceil().long().minimum(context)

    def _safely_most(self, memory: Memory, call: Call) -> Tensor:
        """The most rows that may rank above the threshold and need no selection, [B, T]; below `least` where all do.

        Ranks are counted by one kernel and kept by another: one that is rounded across the threshold must find room. A
        row that is full already gets the border halfway between two ranks, as one that strays; only where these two lie
        within rounding of each other, and the kernels round them differently, could it keep one row more.
        """
        key = ("safely most", amount_of(self, memory.site), self._cost(memory, call))
        return call.once(key, lambda: self._room_of_rows(memory, call))

    def _room_of_rows(self, memory: Memory, call: Call) -> Tensor:
        _, least, most = self._bounds(memory, call)
        safe = most - (most < call.context_BT).long()  # a row that may keep all that it sees cannot keep more
        return safe.masked_fill(safe < least, -1)

    def _row_bounds(self, memory: Memory, call: Call) -> tuple[Tensor, Tensor]:
        """The bounds of a single row, [B] int32; one that stays dense wants all rows, whatever its threshold."""
        _, least, most = self._bounds(memory, call)
        return least[:, 0].int(), most[:, 0].int()

    def _aim(self, memory: Memory, call: Call) -> Tensor:
        """What the thresholds aim at, [B, T]."""
        return rows_once(self, memory, call, self._cost(memory, call))

    def _cost(self, memory: Memory, call: Call) -> Cost:
        row = (memory.keys.row_bytes + memory.values.row_bytes) * (call.group if self.heads == "query" else 1)
        return threshold.cost(memory, memory.aux["lead"].row_bytes, row)

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """A row's own count may stray from the aim up to `most` of it."""
        sets = call.group if self.heads == "query" else 1
        key = ("allowance", amount_of(self, memory.site), self._cost(memory, call))
        return Allowance(attended_BT=call.once(key, lambda: self._most_attended(memory, call, sets)))

    def _most_attended(self, memory: Memory, call: Call, sets: int) -> Tensor:
        most = (self._aim(memory, call) * self.most).ceil().minimum(call.context_BT)
        return (most * sets).minimum(call.context_BT)

    def _count(self, memory: Memory, call: Call, ledger: Ledger, read_BGT: Tensor) -> None:
        ledger.count(memory, call, read_BGT, self._beside(memory, call))

    def _beside(self, memory: Memory, call: Call) -> Tensor:
        """Bytes that a query row reads beside the rows attended, [B, T]."""
        site, theta = memory.site, memory.constants["theta"]
        part = site.live / max(1, len(site.kv_heads))
        basis = sum(memory.constants[name].nbytes for name in ("lead", "rest"))
        fixed = basis * part / call.context_BT.shape[0] + theta.shape[0] * theta.element_size() * part
        fixed += running.mean_bytes(memory) if self.vmc == "mean" else 0
        low = site.live * memory.aux["lead"].row_bytes
        beside: Tensor = call.once(("beside", low, fixed), lambda: call.context_BT.double() * low + fixed)
        return beside


def _exponents(scores: Tensor) -> Tensor:
    """Exp of scores over each row's largest; zeros where there is none."""
    return (scores - scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)).exp()
