"""SparQ: the largest components of the query choose the rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...kernels.choose_by_weight import OP as CHOOSE_BY_WEIGHT
from ...kernels.chosen_share import OP as CHOSEN_SHARE
from ...kernels.fill_missing import OP as FILL_MISSING
from ...kernels.sparq_rows import OP as SPARQ_ROWS
from ...kernels.sparq_score import OP as SPARQ_SCORE
from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount, Share
from .. import attend, many, running
from ..budget import Allowance, Cost, amount_of, asks_for_gaps, rows_once, share, widest, word_of
from ..call import Call
from ..landing import Landing
from ..ledger import Ledger
from ..memory import Memory
from ..method import Method
from ..rows import Rows


@dataclass(frozen=True)
class Sparq(Method):
    """Rows are ranked by the r components of the query that are largest in magnitude; the best are attended exactly.

    SparQ Attention: Bandwidth-Efficient LLM Inference (arXiv 2312.04985, Algorithm 1). The r components are chosen once
    for the query heads of a key/value head, by their summed magnitude. Approximate weights are a softmax of the partial
    products over sqrt(D |q_r| / |q|); they are summed over the group, so that a key/value head has one set of rows; the
    last rows are always in it. What the approximate weights put on rows that are dropped goes to the mean value, kept
    as a running sum.

    Keeps everything, and each key twice: components are read from a copy laid out by component, which is charged. Reads
    r/D of every key, key and value of the rows chosen, and one sum of values.

    Arguments: `keep` a share of the row's causal length, `rows` a count, or `bytes` that a layer reads for a row, the
    local rows among them; `r` components, a share of the head dimension or a count; `local` last rows always kept, a
    share of the budget (a quarter in the paper) or a count; `rest: mean` reallocates to the mean value, `rest: none`
    leaves the dropped weight out. `budget_rule: exact` counts the row itself among both, as the paper does;
    `budget_rule: released` is the authors' code, which comes to one row more of each: k + 1 rows, the last local + 1
    among them. It is charged what it reads. (Adding 1 to the weights of local rows, as Loki's port does, chooses the
    same set.)
    """

    keep: Keep = None
    rows: RowCount = 128
    bytes: ByteCount = None
    r: Annotated[int | float, Share("the head dimension")] = 0.25
    local: Annotated[int | float, Share("the budget")] = 0.25
    rest: Literal["mean", "none"] = "mean"
    budget_rule: Literal["exact", "released"] = "exact"
    version: ClassVar[int] = 3
    shape: ClassVar[Literal["direct", "select", "evict"]] = "select"

    def __post_init__(self) -> None:
        rules.one_budget(self)
        over = self.budget_rule == "released" and self.bytes is not None
        rules.refuse(self, when=over, why="budget_rule: released reads a row more than asked: give keep or rows")

    def room(self, memory: Memory, steps: int) -> int:
        """A row a step."""
        del memory
        return steps

    def expects_gaps(self) -> bool:
        """A share of 1 asks for everything."""
        return asks_for_gaps(self)

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Append, with the second copy of the keys and the sum of the values."""
        if self.rest == "mean":
            running.add(memory, v_BGTD)
        memory.aux.setdefault("by_component", Rows(memory.room, "columns"))
        memory.append(k_BGTD, v_BGTD, {"by_component": k_BGTD})

    def landing(self, memory: Memory) -> Landing:
        """The same of a single row, in one launch."""
        landing = replace(Landing.plain(memory), leads=memory.aux["by_component"])
        return replace(landing, sums=memory.extra[running.SUM]) if self.rest == "mean" else landing

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Rank, choose, attend: by index for one row, by mask for many."""
        if call.new == 1:
            return self._one(q_BHTD, memory, call, ledger)
        out, inside = self._many(q_BHTD, memory, call, ledger)
        if self.rest == "none":
            return out
        mean = running.mean_BGTD(memory, call).repeat_interleave(q_BHTD.shape[1] // memory.keys.view.shape[1], 1)
        mixed = inside[..., None] * out + (1 - inside[..., None]) * mean
        empty = call.once("empty", lambda: call.context_BT[:, None, :, None] == 0)
        return mixed.masked_fill(empty, 0).to(q_BHTD.dtype)

    def _one(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        by_component, (lo, hi) = memory.aux["by_component"].view.transpose(2, 3), attend.span(memory, call)
        cost = self.cost(memory, call)
        key = ("sparq", amount_of(self, memory.site), cost)
        budget, local = call.once(key, lambda: self._row_budget(memory, call))
        held = memory.keys.view.shape[2]
        width = min(widest(self, memory.site, held, cost) + self._more, held)
        scores, parts = SPARQ_SCORE(q_BHTD[:, :, 0], by_component, lo, hi, self._components(memory), call.scale)
        groups = by_component.shape[1]
        index, count, lse = CHOOSE_BY_WEIGHT(scores, parts, lo, hi, local, budget, groups, width)
        self._count(memory, call, ledger, count[..., None])
        if self.rest == "none":
            return attend.gathered(q_BHTD, memory, index, count, call)
        share = CHOSEN_SHARE(scores, lse, index, count)  # while some scores are still near
        out, sums = attend.gathered(q_BHTD, memory, index, count, call), memory.extra[running.SUM]
        return FILL_MISSING(out[:, :, 0], share, sums[:, :, 0], call.context_BT[:, 0], 1.0)[:, :, None]

    def _wanted(self, memory: Memory, call: Call) -> tuple[Tensor, Tensor]:
        """Rows to choose and local rows among them; [B, T] int32."""
        kept = self._budget(memory, call)
        return kept.int(), (share(self.local, kept - self._more) + self._more).int()

    def _row_budget(self, memory: Memory, call: Call) -> tuple[Tensor, Tensor]:
        """Rows to choose and local rows among them, of a single row; [B] int32."""
        budget, local = self._wanted(memory, call)
        return budget[:, 0], local[:, 0]

    def _many(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> tuple[Tensor, Tensor]:
        if ledger.watch is None and many.fits(q_BHTD, memory, call):
            return self._through_bits(q_BHTD, memory, call, ledger)
        visible, budget = attend.visible_BTS(memory, call), self._budget(memory, call)
        groups, keeps, inside = memory.keys.view.shape[1], [], []
        for rows in attend.pieces(call):
            weights = self._weights(q_BHTD[:, :, rows], memory, visible[:, rows], call)
            keep = attend.largest(self._rank(weights, memory, visible[:, rows], call, rows), budget[:, rows])
            inside.append((weights * keep.repeat_interleave(weights.shape[1] // groups, 1)).sum(-1))
            keeps.append(keep)
        kept = torch.cat(keeps, 2)
        ledger.chosen(memory, call, q_BHTD, kept)
        self._count(memory, call, ledger, kept.sum(-1))
        return attend.masked(q_BHTD, memory, kept, call), torch.cat(inside, 2)

    def _through_bits(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> tuple[Tensor, Tensor]:
        """The same through kernels."""
        (lead, factor), budget, k = self._ranking(q_BHTD, memory, call), self._budget(memory, call), memory.keys.view
        key = ("bits", amount_of(self, memory.site), self.cost(memory, call))
        wanted, local = call.once(key, lambda: self._wanted(memory, call))
        chosen = SPARQ_ROWS(lead, k, factor, wanted, local, call.first.int())
        self._count(memory, call, ledger, budget[:, None].expand(-1, k.shape[1], -1))
        return many.chosen(q_BHTD, memory, call, chosen.bits_BGTW, 1), chosen.inside_BHT

    def _weights(self, q_BHTD: Tensor, memory: Memory, seen_BTS: Tensor, call: Call) -> Tensor:
        """Approximate weights of every row, [B, H, T, S]; zeros where nothing is seen."""
        lead, factor = self._ranking(q_BHTD, memory, call)
        scores = attend.group_scores(lead, memory.aux["by_component"].view, "none") * factor[..., None]
        return scores.masked_fill(~seen_BTS[:, None], -torch.inf).softmax(-1).nan_to_num(0)

    def _ranking(self, q_BHTD: Tensor, memory: Memory, call: Call) -> tuple[Tensor, Tensor]:
        """The leading components of the query, and the factor of their products, [B, H, T]."""
        lead = self._leading(q_BHTD, memory)
        part = lead.float().abs().sum(-1) / q_BHTD.float().abs().sum(-1)
        # a head without any of these components has equal weights everywhere
        return lead, call.scale * torch.where(part > 0, part, 1.0).rsqrt()

    def _leading(self, q_BHTD: Tensor, memory: Memory) -> Tensor:
        """The query with all but the r largest components of its group set to zero."""
        groups = memory.keys.view.shape[1]
        size = q_BHTD.float().abs().unflatten(1, (groups, -1)).sum(2)
        best = size.sort(dim=-1, descending=True, stable=True).indices[..., : self._components(memory)]
        keep = torch.zeros_like(size, dtype=torch.bool).scatter_(-1, best, True)
        return q_BHTD * keep.repeat_interleave(q_BHTD.shape[1] // groups, 1)

    def _components(self, memory: Memory) -> int:
        size = memory.site.head_dim
        return min(self.r, size) if isinstance(self.r, int) else max(1, int(self.r * size))

    def _rank(self, weights_BHTS: Tensor, memory: Memory, seen_BTS: Tensor, call: Call, rows: slice) -> Tensor:
        """Weights summed over the group, [B, G, T, S]; +inf for local rows and -inf for rows not seen."""
        summed = weights_BHTS.unflatten(1, (memory.keys.view.shape[1], -1)).sum(2)
        kept = self._budget(memory, call)[:, rows]
        after = call.numbers_T[rows] - share(self.local, kept - self._more) - self._more
        local = memory.numbers_BS(seen_BTS.shape[0])[:, None] > after[..., None]
        return summed.masked_fill(local[:, None], torch.inf).masked_fill(~seen_BTS[:, None], -torch.inf)

    def cost(self, memory: Memory, call: Call) -> Cost:
        """Parts of every key, whole rows of those chosen, the sum of values."""
        del call
        heads, part = memory.site.kv_heads_real, memory.aux["by_component"].view.element_size()
        row = memory.keys.row_bytes + memory.values.row_bytes
        mean = running.row_bytes(memory) if self.rest == "mean" else 0
        return Cost(row * heads, self._components(memory) * part * heads, mean * heads)

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """The budget."""
        if word_of(self) == "bytes":
            return Allowance(read_bytes=amount_of(self, memory.site))
        return Allowance(attended_BT=self._budget(memory, call))

    def _budget(self, memory: Memory, call: Call) -> Tensor:
        asked = rows_once(self, memory, call, self.cost(memory, call))
        return (asked + self._more).minimum(call.context_BT) if self._more else asked

    @property
    def _more(self) -> int:
        """Rows beyond those asked for, and beyond the local ones."""
        return int(self.budget_rule == "released")

    def _count(self, memory: Memory, call: Call, ledger: Ledger, read_BGT: Tensor) -> None:
        part = self._components(memory) * memory.aux["by_component"].view.element_size() * memory.site.live
        mean = running.mean_bytes(memory) if self.rest == "mean" else 0
        beside = call.once(("beside", part, mean), lambda: call.context_BT.double() * part + mean)
        ledger.count(memory, call, read_BGT, beside)
