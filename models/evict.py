"""Eviction: what the methods that compress a prompt once have in common.

Shapes: B batch, H query heads, G key/value heads, N sets of rows (1, G, or H), T query rows, S rows held, D head
dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..results import rules
from . import attend, many
from .budget import Allowance, Amount, Cost, amount_of, asks_for_gaps, in_rows, word_of
from .call import Call
from .ledger import Ledger
from .memory import Memory
from .method import Method


class Evict(Method):
    """Compresses whenever prompt rows have come, and lets the cache grow by the rows decoded.

    A further prompt on the same cache is compressed like the first: held rows and new ones compete for the budget,
    whose share counts from the whole text so far. A subclass is a dataclass with the fields `keep`, `rows`, `bytes`
    (the budget of a layer's key/value head: share of the prompt, a count, or bytes that the layer holds).
    """

    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"
    keep: Amount
    rows: Amount
    bytes: Amount

    def __post_init__(self) -> None:
        rules.one_budget(self)

    @abstractmethod
    def worth(self, memory: Memory, call: Call, rows_B: Tensor) -> Tensor:
        """What each row held is worth, [B, N, S] in fp32; +inf: always kept while the budget lasts."""

    def cost(self, memory: Memory, call: Call) -> Cost:
        """Bytes held: rows, with what is held beside them, and whatever has the same size always."""
        del call
        site, parts = memory.site, (memory.keys, memory.values, *memory.aux.values())
        others = sum(e.nbytes for e in memory.extra.values()) / memory.keys.view.shape[0]
        others += sum(c.nbytes for c in memory.constants.values())
        fixed = others / max(1, len(site.kv_heads)) * site.kv_heads_real
        return Cost(sum(part.row_bytes for part in parts) * site.kv_heads_real, fixed=fixed)

    def budget_B(self, memory: Memory, call: Call) -> Tensor:
        """Budget of this layer in rows of a head at the end of a prompt, [B]."""
        return in_rows(self, memory.site, call.context_BT[:, -1], self.cost(memory, call))

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """The budget at the end of the last prompt, and the rows decoded since."""
        if word_of(self) == "bytes":
            grown = (int(memory.seen) - memory.prompt_seen) * self.cost(memory, call).row
            return Allowance(held_bytes=amount_of(self, memory.site) + grown)
        if memory.allowed is None or memory.prompt is None:
            return Allowance()  # without a prompt nothing is compressed
        rows = (memory.allowed - memory.prompt)[:, None] + call.context_BT
        return Allowance(attended_BT=rows if call.phase == "decode" else None, held_B=rows[:, -1])

    def room(self, memory: Memory, steps: int) -> int:
        """A row a step: nothing is dropped but at the end of a prompt."""
        del memory
        return steps

    def head_rows(self, worth_BNS: Tensor, rows_B: Tensor) -> Tensor:
        """The same for each set of rows, [B, N]; default equal."""
        return rows_B[:, None].expand(-1, worth_BNS.shape[1])

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Attend all that is held."""
        return self.attend_dense(q_BHTD, memory, call, ledger)

    def settle(self, memory: Memory, call: Call) -> None:
        """Compress the prompt."""
        if call.phase == "prefill":
            rows = memory.allowed = self.budget_B(memory, call)
            if int(rows.min()) < memory.keys.view.shape[2]:
                self._compress(memory, call, rows)

    def _compress(self, memory: Memory, call: Call, rows_B: Tensor) -> None:
        worth = self.worth(memory, call, rows_B)
        worth = worth.masked_fill(~text(memory, call), -torch.inf)
        wanted = self.head_rows(worth, rows_B)
        keep = attend.largest(worth[:, :, None], wanted[..., None])[:, :, 0]
        self.leave(memory, call, text(memory, call) & ~keep)
        memory.keep(attend.rows_of(keep))

    def leave(self, memory: Memory, call: Call, gone_BNS: Tensor) -> None:
        """Take leave of rows that are about to be dropped after a prompt; default nothing."""

    def expects_gaps(self) -> bool:
        """A share of 1 asks for everything."""
        return asks_for_gaps(self)


def text(memory: Memory, call: Call) -> Tensor:
    """Which rows held are text (no padding, no hole), [B, N, S]."""
    return memory.numbers_BNS(call.first.shape[0]) >= call.first[:, None, None]


def weights(q_BHTD: Tensor, memory: Memory, call: Call, visible_BNTS: Tensor) -> Tensor:
    """softmax(q.k) in fp32 over the rows that are visible; zeros where none is; [B, H, T, S]."""
    scores = attend.group_scores(q_BHTD, memory.keys.view, "none") * call.scale
    sets = visible_BNTS.shape[1]
    seen = visible_BNTS.repeat_interleave(scores.shape[1] // sets, 1) if sets > 1 else visible_BNTS
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0.0)


def grouped(x_BHTS: Tensor, groups: int, how: str) -> Tensor:
    """Reduce over the query heads of each group ("mean", "max" or "sum"); [B, G, T, S]."""
    batch, heads, rows, held = x_BHTS.shape
    x = x_BHTS.view(batch, groups, heads // groups, rows, held)
    if how == "max":
        return x.amax(2)
    return x.sum(2) if how == "sum" else x.mean(2)


class Observed(Evict):
    """The last rows of the prompt, the observation window, vote with their attention for what is kept beside them.

    A subclass is a dataclass with the further fields `window` (rows that vote, and are kept), `kernel` (odd width of
    the pooling of votes along the text), `pooling` ("max" or "avg"), `group` (how query heads of a group are joined,
    before pooling: "mean", "max" or "sum") and `heads` ("kv": rows per key/value head; "query": each query head holds
    rows of its own).
    """

    window: int
    kernel: int
    pooling: str
    group: str
    heads: str

    def __post_init__(self) -> None:
        rules.observed(self)

    def cost(self, memory: Memory, call: Call) -> Cost:
        """Where query heads hold rows of their own, each row is held once for each of them."""
        one = super().cost(memory, call)
        return replace(one, row=one.row * (call.group if self.heads == "query" else 1))

    def worth(self, memory: Memory, call: Call, rows_B: Tensor) -> Tensor:
        """Pooled votes; the window itself is always kept."""
        width = rows_B.clamp(max=self.window)  # a budget smaller than the window is all window
        numbers = memory.numbers_BNS(rows_B.shape[0])
        inside = numbers >= (call.seen - width)[:, None, None]
        if call.query is not None and many.fits(call.query, memory, call):
            last = call.query[:, :, -self.window :]
            pooled = many.votes(last, width, memory, call, self.group, self.kernel, self.pooling)
            return pooled.masked_fill(inside, torch.inf)
        votes = self._votes(memory, call, width).masked_fill(inside | ~text(memory, call), 0.0)
        pool = functional.max_pool1d if self.pooling == "max" else functional.avg_pool1d
        return pool(votes, self.kernel, 1, self.kernel // 2).masked_fill(inside, torch.inf)

    def _votes(self, memory: Memory, call: Call, width_B: Tensor) -> Tensor:
        """Attention that each row held gets from the window, joined over the group; [B, G or H, S]."""
        assert call.query is not None
        rows = min(self.window, call.new)
        visible = attend.visible_BNTS(memory, call)[:, :, -rows:]
        votes = call.numbers_T[-rows:] >= (call.seen - width_B)[:, None]
        seen = weights(call.query[:, :, -rows:], memory, call, visible & votes[:, None, :, None])
        return grouped(seen.sum(2, keepdim=True), memory.keys.view.shape[1], self.group)[:, :, 0]

    def _compress(self, memory: Memory, call: Call, rows_B: Tensor) -> None:
        if self.heads == "query":
            assert call.query is not None
            memory.copy_heads(call.query.shape[1] // len(memory.site.kv_heads))
        super()._compress(memory, call, rows_B)
