"""Eviction at every step: methods that drop a row for each new one.

Shapes: B batch, H query heads, G key/value heads, N sets of rows (1 or G), T query rows, S rows held.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..results import rules
from . import attend, full_cache, lifetime, many
from .budget import Allowance, Budgeted, Cost, amount_of, in_rows, widest, word_of
from .call import Call
from .evict import Evict, weights
from .ledger import Ledger
from .memory import Memory
from .walk import Marking, Walk, walk_at_once


class Stepwise(Evict):
    """Drops a row for each new one as soon as the budget is full: a row attends k rows, itself included.

    Each row held bears a mark that attention leaves on it ([B, G, S, 1], fp32, charged); the lowest mark goes first,
    the oldest among equals. A dense prompt only leaves marks, and is cut at its end; a sparse one is walked like
    decoded rows. The walk over T rows is the T steps themselves, on one matrix of scores.
    """

    @abstractmethod
    def mark(self, marks_BGS: Tensor, weights_BHTS: Tensor) -> Tensor:
        """Marks after T more rows attended; [B, G, S]."""

    @abstractmethod
    def marking(self, heads: int, groups: int) -> Marking:
        """The same as factors, for a kernel, of so many query heads and key/value heads."""

    @abstractmethod
    def protected(self, rows_B: Tensor) -> Tensor:
        """How many of the last rows are never dropped; at least the new row itself, at most the budget."""

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Append rows without marks; in a full cache that is pinned, the new row takes another's place."""
        if full_cache.is_prepared(memory):
            full_cache.swap(memory, k_BGTD, v_BGTD)
            return
        memory.append(k_BGTD, v_BGTD, {"mark": torch.zeros_like(k_BGTD[..., :1], dtype=torch.float32)})

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Dense; rows leave their marks."""
        marks = memory.aux["mark"].view[..., 0]
        self.mark_prompt(marks, q_BHTD, memory, call)
        return super(Evict, self).attend_dense(q_BHTD, memory, call, ledger)

    def mark_prompt(self, marks_BGS: Tensor, q_BHTD: Tensor, memory: Memory, call: Call) -> None:
        """Leave the marks of all rows of a dense prompt, in place."""
        for rows in attend.pieces(call):
            seen = attend.visible_BNTS(memory, call, rows)
            marks_BGS.copy_(self.mark(marks_BGS, weights(q_BHTD[:, :, rows], memory, call, seen)))

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Walk the rows; each attends what the walk has left it."""
        if call.clock is not None:
            return self._step(q_BHTD, memory, call, ledger)
        if ledger.watch is None and many.fits_hidden(q_BHTD, call):
            return self._at_once(q_BHTD, memory, call, ledger)
        walk = Walk(self, memory, call)
        pieces = torch.arange(call.new, device=q_BHTD.device).split(attend.ROWS_AT_ONCE)
        keep = torch.cat([walk.rows(q_BHTD, piece) for piece in pieces], 2)
        ledger.chosen(memory, call, q_BHTD, keep)
        self._count(memory, call, ledger, keep.sum(-1))
        if call.new > 1:
            out = attend.masked(q_BHTD, memory, keep, call)
            memory.keep(attend.rows_of(walk.held))
            return out
        memory.keep(attend.rows_of(walk.held))
        return attend.dense(q_BHTD, memory, call)

    def _at_once(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """The same through kernels."""
        until = walk_at_once(self, q_BHTD, memory, call)
        out, _ = lifetime.attend_held(q_BHTD, memory, until, call.scale)
        self._count(memory, call, ledger, lifetime.held_count(until, call))
        memory.keep(attend.rows_of(until == call.new, self.most_rows(memory, call)), call.new)
        return out.to(q_BHTD.dtype)

    def _step(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """A step of a full cache; which row leaves was found when the new one was written."""
        ledger.count(memory, call, memory.given["held"], 0.0, marked_row_bytes(memory))
        marking = self.marking(q_BHTD.shape[1], memory.keys.view.shape[1])
        return full_cache.attend(q_BHTD, memory, call, marking)

    def room(self, memory: Memory, steps: int) -> int:
        """None: a full cache takes one row for another.

        Raises:
            ValueError: the cache is not full, or its budget grows.
        """
        del steps
        assert memory.first is not None
        call = Call(None, memory.first, "decode", 1.0, int(memory.seen) + 1, 1)
        budget_B = self.rows_BT(memory, call)[:, 0]
        grows = word_of(self) == "keep" and memory.prompt is None
        if grows or memory.columns is None or bool((memory.text_rows_BN(memory.first) < budget_B[:, None]).any()):
            told = f"{word_of(self)} = {amount_of(self, memory.site)}"
            name = rules.name_of(self)
            raise ValueError(f"{name} is captured with a full cache: the prompt must be longer than {told}")
        full_cache.prepare(memory, self.protected(budget_B))
        return 0

    def _count(self, memory: Memory, call: Call, ledger: Ledger, read_BGT: Tensor) -> None:
        ledger.count(memory, call, read_BGT, 0.0, marked_row_bytes(memory))

    def worth(self, memory: Memory, call: Call, rows_B: Tensor) -> Tensor:
        """The marks; recent rows are always kept."""
        newest = memory.numbers_BNS(rows_B.shape[0]) >= (call.seen - self.protected(rows_B))[:, None, None]
        return memory.aux["mark"].view[..., 0].masked_fill(newest, torch.inf)

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """The budget: rows decoded push others out."""
        if word_of(self) == "bytes":
            return Allowance(held_bytes=amount_of(self, memory.site))
        rows = self.rows_BT(memory, call)
        return Allowance(attended_BT=rows, held_B=rows[:, -1])

    def rows_BT(self, memory: Memory, call: Call) -> Tensor:
        """Budget of each row."""
        return sliding_rows_BT(self, memory, call, self.cost(memory, call))

    def most_rows(self, memory: Memory, call: Call) -> int:
        """The most rows that a head holds during the call, known without asking the device."""
        return widest_held(self, memory, call, self.cost(memory, call))

    def expects_gaps(self) -> bool:
        """Always: even a share of 1 is full at the end of the prompt."""
        return True


def sliding_rows_BT(method: Budgeted, memory: Memory, call: Call, cost: Cost) -> Tensor:
    """Budget of each row of a method that drops a row for each new one.

    A share counts from the prompt, or without one from the row's own causal length.
    """
    key = ("sliding rows", amount_of(method, memory.site), cost, call.phase, memory.prompt is None)
    return call.once(key, lambda: _sliding_rows_BT(method, memory, call, cost))


def _sliding_rows_BT(method: Budgeted, memory: Memory, call: Call, cost: Cost) -> Tensor:
    if call.phase == "prefill":
        base = call.context_BT[:, -1:]
    elif _from_prompt(method, memory):
        assert memory.prompt is not None
        base = memory.prompt[:, None]
    else:
        base = call.context_BT.clamp(min=1)
    return in_rows(method, memory.site, base, cost).expand(-1, call.new)


def _from_prompt(method: Budgeted, memory: Memory) -> bool:
    """Whether the rows after a prompt have a share of it."""
    return memory.prompt is not None and word_of(method) == "keep"


def widest_held(method: Budgeted, memory: Memory, call: Call, cost: Cost) -> int:
    """The most rows that any head of such a method holds during the call, known without asking the device."""
    assert isinstance(call.seen, int)
    tokens = memory.prompt_seen if call.phase == "decode" and _from_prompt(method, memory) else call.seen
    before = memory.keys.view.shape[2] - call.new
    return max(before, widest(method, memory.site, tokens, cost))


def marked_row_bytes(memory: Memory) -> int:
    """Bytes of a key, its value and its mark."""
    return sum(part.row_bytes for part in (memory.keys, memory.values, memory.aux["mark"]))
