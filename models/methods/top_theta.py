"""Top-Theta: calibrated thresholds choose the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...kernels.theta_decode import OP as THETA_DECODE
from ...results import rules
from ...results.fields import ByteCount, Keep, Needs, RowCount, Within
from .. import attend, many, running, threshold
from ..budget import Allowance, Cost, amount_of, asks_for_gaps, rows_once
from ..call import Call
from ..landing import Landing
from ..ledger import Ledger
from ..memory import Memory, Site
from ..method import Method

MISSING = {"none": "none", "exact": "exact", "exp_threshold": "threshold", "offline": "given"}  # as the op says it


@dataclass(frozen=True)
class TopTheta(Method):
    """The rows whose score exceeds a threshold are attended: about k of them, without a search for the k largest.

    Top-Theta Attention (arXiv 2502.08363). Thresholds are calibrated for each layer, head and row length (task
    thresholds). Keeps everything; reads every key, since scores are exact, the value rows above the threshold (those of
    any query head of a group), one threshold a head and, with `vmc`, a sum of values. Rows of at most k tokens stay
    dense. Every rule holds for prompt rows and for decoded rows alike; in the authors' first code the compensations did
    nothing in decode.

    Arguments: what thresholds aim at, k rows: `keep` a share of the row's causal length, `rows` a count (the published
    runs keep 512 in layers 0 and 1: `rows: [[512, 512, 64]]`), or `bytes` of all keys and the values chosen;
    `placement` compares scores before the softmax, or weights after it, which are then not normalised again; `heads:
    query` (paper) chooses rows for each query head, `kv` once for a group by its largest score.

    `sdc` puts the weight of dropped rows back into the softmax's denominator (before the softmax only): `exact`, from
    all scores; `exp_threshold`, as if each dropped row stood at the threshold, which bounds it from above; `offline`,
    their mean in the calibration; times `sdc_scale`. `vmc: mean` gives the weight that then lacks to the causal mean
    of the values; without it the output shrinks. The published runs use `sdc: exact` with `vmc: mean`, or
    `placement: post` with `vmc: mean`.

    A row whose threshold no key exceeds keeps its largest score (the authors' code attends all columns evenly there,
    future ones included). Where more than k keys exceed it, `cap: none` (default) keeps them all, `cap: best` the k
    largest, `cap: recent` the k last (the authors' `capk`). `between` says which threshold a length takes that was not
    calibrated: on the line between its neighbours, or the nearest one's (the authors'); beyond the longest, the last.
    """

    keep: Keep = None
    rows: RowCount = 64
    bytes: ByteCount = None
    placement: Literal["pre", "post"] = "pre"
    heads: Literal["query", "kv"] = "query"
    sdc: Literal["none", "exact", "exp_threshold", "offline"] = "none"
    sdc_scale: Annotated[float, Within(0, open_low=True)] = 1.0
    vmc: Literal["none", "mean"] = "none"
    cap: Literal["none", "best", "recent"] = "none"
    between: Literal["linear", "nearest"] = "linear"
    thresholds: Annotated[
        Mapping[str, Any], Needs("thresholds", same=("keep", "rows", "bytes", "placement", "heads"))
    ] = field(default_factory=dict)
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "select"
    by_length: ClassVar[tuple[str, ...]] = ("theta", "mass")

    def __post_init__(self) -> None:
        rules.one_budget(self)
        whole = self.placement == "post" and self.sdc != "none"
        rules.refuse(self, when=whole, why="placement: post has the whole denominator: set sdc: none")
        full = self.placement == "pre" and self.vmc == "mean" and self.sdc == "none"
        rules.refuse(self, when=full, why="placement: pre lacks no weight without sdc: set sdc, or vmc: none")
        scaled = self.sdc == "none" and self.sdc_scale != 1
        rules.refuse(self, when=scaled, why="sdc: none scales nothing: leave sdc_scale at 1")

    def room(self, memory: Memory, steps: int) -> int:
        """A row a step; with a cap a selection depends on how many rows there are."""
        return steps if self.cap == "none" else super().room(memory, steps)

    def expects_gaps(self) -> bool:
        """A share of 1 in every layer asks for everything."""
        return asks_for_gaps(self)

    def tables(self, site: Site) -> Mapping[str, Tensor]:
        """Thresholds and, for offline compensation, exponents dropped in the calibration; [N, L]."""
        found = {"theta": threshold.read_table(site, self.placement, self.between)}
        if self.sdc == "offline":
            found["mass"] = threshold.read_table(site, "mass", self.between)
        return found

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Append, and sum the values where their mean is asked for."""
        if self.vmc == "mean":
            running.add(memory, v_BGTD)
        memory.append(k_BGTD, v_BGTD)

    def landing(self, memory: Memory) -> Landing:
        """The same of a single row, in one launch."""
        landing = Landing.plain(memory)
        return replace(landing, sums=memory.extra[running.SUM]) if self.vmc == "mean" else landing

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Score all rows, compare, attend what is left: one row through the op, many through masks."""
        if call.new == 1 and self.cap == "none" and ledger.watch is None:
            return self._one(q_BHTD, memory, call, ledger)
        if self.cap == "none" and ledger.watch is None and many.fits(q_BHTD, memory, call):
            return self._many(q_BHTD, memory, call, ledger)
        parts = [self._rows(q_BHTD, memory, call, rows) for rows in attend.pieces(call)]
        out, lack, keep = (torch.cat(part, 2) for part in zip(*parts, strict=True))
        ledger.chosen(memory, call, q_BHTD, keep)
        self._count(memory, call, ledger, attend.union_BGT(keep, memory.keys.view.shape[1]))
        return self._compensated(out, lack, memory, call).to(q_BHTD.dtype)

    def _compensated(self, out_BHTD: Tensor, lack_BHT: Tensor, memory: Memory, call: Call) -> Tensor:
        if self.vmc == "mean":
            mean = threshold.per_head(running.mean_BGTD(memory, call), out_BHTD.shape[1])
            out_BHTD = out_BHTD + lack_BHT[..., None] * mean
        return out_BHTD.masked_fill(call.once("empty", lambda: call.context_BT[:, None, :, None] == 0), 0)

    def _one(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        k, v, (lo, hi) = memory.keys.view, memory.values.view, attend.span(memory, call)
        heads = q_BHTD.shape[1]
        theta = threshold.of_row(memory, "theta", call, heads if self.heads == "query" else k.shape[1])
        theta = theta.masked_fill(self._stays_dense(memory, call)[..., 0], -torch.inf)
        given = call.once(("none given", heads), lambda: theta.new_zeros(theta.shape[0], heads))
        if self.sdc == "offline":
            given = threshold.of_row(memory, "mass", call, heads)
        missing = "exact" if self.placement == "post" else MISSING[self.sdc]
        sums = memory.extra[running.SUM][:, :, 0] if self.vmc == "mean" else None
        out, _, count = THETA_DECODE(
            q_BHTD[:, :, 0], k, v, lo, hi, call.scale, theta, self.placement, missing, given, self.sdc_scale, sums,
            call.context_BT[:, 0],
        )  # fmt: skip
        self._count(memory, call, ledger, count[..., None])
        return out[:, :, None]

    def _many(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        heads, groups = q_BHTD.shape[1], memory.keys.view.shape[1]
        how, sets = ("none", heads) if self.heads == "query" else ("max", groups)
        theta = threshold.look_up(memory.constants["theta"], call, sets)
        short = self._stays_dense(memory, call)
        shift = many.weight_sums(q_BHTD, memory, call) if self.placement == "post" else None
        limit = theta if shift is None else theta.clamp(min=0).log()
        limit = limit.masked_fill(short, -torch.inf)
        kept = many.above(q_BHTD, memory, call, limit, how, shift)
        empty = (kept.count_BNT == 0) & (call.context_BT > 0)[:, None]
        if bool(empty.any()):  # those rows keep their largest score
            rank = kept.top_BHT if shift is None else kept.top_BHT - shift
            top = threshold.over_group(rank[..., None], groups, self.heads)[..., 0]
            limit = torch.where(empty, top - top.abs() * 2**-20, limit)
            kept = many.above(q_BHTD, memory, call, limit, how, shift)
        count = threshold.per_head(kept.count_BNT, heads)
        bound = (threshold.per_head(theta, heads) - kept.top_BHT).clamp(max=0).exp()
        dropped = (kept.total_BHT - kept.kept_BHT).clamp(min=0)[..., None]
        missing = self._missing(dropped, call.context_BT[:, None] - count, bound, memory, call, attend.ALL_ROWS)
        out, lack = many.exceeding(kept, missing)
        self._count(memory, call, ledger, kept.read_BGT)
        return self._compensated(out, lack, memory, call).to(q_BHTD.dtype)

    def _rows(self, q_BHTD: Tensor, memory: Memory, call: Call, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Output [B, H, t, D], share of weight that lacks [B, H, t], rows kept [B, N, t, S], of some query rows."""
        seen = attend.visible_BTS(memory, call, rows)[:, None]
        scores = attend.group_scores(q_BHTD[:, :, rows], memory.keys.view, "none") * call.scale
        scores = scores.masked_fill(~seen, -torch.inf)
        top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
        weights = (scores - top).exp()
        keep, theta = self._keep(scores, seen, memory, call, rows)
        kept = threshold.per_head(keep, scores.shape[1])
        bound = (threshold.per_head(theta, scores.shape[1]) - top[..., 0]).clamp(max=0).exp()
        missing = self._missing(weights * ~kept, (seen & ~kept).sum(-1), bound, memory, call, rows)
        out, lack = threshold.weighted(weights * kept, missing, memory)
        return out, lack, keep

    def _keep(
        self, scores_BHTS: Tensor, seen_B1TS: Tensor, memory: Memory, call: Call, rows: slice
    ) -> tuple[Tensor, Tensor]:
        """The rows to attend [B, N, t, S], and the thresholds [B, N, t]."""
        signal = scores_BHTS
        if self.placement == "post":
            signal = scores_BHTS.softmax(-1).masked_fill(~seen_B1TS, -torch.inf)
        rank = threshold.over_group(signal, memory.keys.view.shape[1], self.heads)
        theta = threshold.look_up(memory.constants["theta"], call, rank.shape[1])[..., rows]
        context = call.context_BT[:, rows]
        k = self._aim(memory, call)[:, rows]
        above = seen_B1TS & ((rank > theta[..., None]) | (context <= k)[:, None, :, None])
        if self.cap == "recent":
            above = threshold.most_recent(above, k)
        return threshold.choose(rank, above, context.clamp(max=1), k if self.cap == "best" else context), theta

    def _stays_dense(self, memory: Memory, call: Call) -> Tensor:
        """Which query rows see no more than the thresholds aim at, [B, 1, T]; the same in all layers of one budget."""
        key = ("stays dense", amount_of(self, memory.site), self._cost(memory, call))
        return call.once(key, lambda: (call.context_BT <= self._aim(memory, call))[:, None])

    def _cost(self, memory: Memory, call: Call) -> Cost:
        sets = call.group if self.heads == "query" else 1
        return threshold.cost(memory, memory.keys.row_bytes, memory.values.row_bytes * sets)

    def _aim(self, memory: Memory, call: Call) -> Tensor:
        """What the thresholds aim at, [B, T]."""
        return rows_once(self, memory, call, self._cost(memory, call))

    def allowance(self, memory: Memory, call: Call) -> Allowance | None:
        """Only a cap bounds a row's own count."""
        if self.cap == "none":
            return None
        sets = call.group if self.heads == "query" else 1
        return Allowance(attended_BT=(self._aim(memory, call) * sets).minimum(call.context_BT))

    def _missing(
        self, dropped_BHTS: Tensor, number_BHT: Tensor, bound_BHT: Tensor, memory: Memory, call: Call, rows: slice
    ) -> Tensor:
        """What dropped rows add to the denominator, over exp of the row's largest score; [B, H, t].

        `number` counts only rows that this row may see: a prompt's later columns are not dropped, they are not there.
        """
        if self.sdc == "exact" or self.placement == "post":
            return dropped_BHTS.sum(-1) * self.sdc_scale
        if self.sdc == "exp_threshold":
            return number_BHT * bound_BHT * self.sdc_scale
        if self.sdc == "offline":
            mass = threshold.look_up(memory.constants["mass"], call, dropped_BHTS.shape[1])[..., rows]
            return mass * (number_BHT > 0) * self.sdc_scale
        return torch.zeros_like(bound_BHT)

    def _count(self, memory: Memory, call: Call, ledger: Ledger, read_BGT: Tensor) -> None:
        """Every key, the value rows chosen, one entry a head of each table, the sum of values."""
        site = memory.site
        entries = sum(table.shape[0] * table.element_size() for table in memory.constants.values())
        fixed = entries * site.live / max(1, len(site.kv_heads))
        fixed += running.mean_bytes(memory) if self.vmc == "mean" else 0
        keys = site.live * memory.keys.row_bytes
        beside = call.once(("beside", keys, fixed), lambda: call.context_BT.double() * keys + fixed)
        ledger.count(memory, call, read_BGT, beside, memory.values.row_bytes)
