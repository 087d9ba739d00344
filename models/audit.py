"""Every call held against its budget: what the ledger counted may not be more than the method's arguments allow.

Shapes: B batch, G key/value heads, T query rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .budget import Allowance
from .call import Call
from .memory import Memory

WHAT = ("rows_attended", "rows_held", "bytes")
SLACK = 1e-3


Allowing = Callable[[Memory, Call], Allowance | None]


@dataclass(frozen=True)
class Moment:
    """One call of one layer, when it was over: what it read and left, and what else its budget depends on.

    Attributes:
        tokens: of the batch so far.
        rows: held, holes among them.
        attended_BT: rows summed over this rank's real heads, copies of heads too; read_BT bytes of the same.
        text_BN: rows of text held.
        held_bytes: of all texts.
        acted: whether the method's own attention did it.
    """

    memory: Memory
    call: Call
    allowing: Allowing
    tokens: int
    rows: int
    attended_BT: Tensor | None
    read_BT: Tensor | None
    text_BN: Tensor
    held_bytes: Tensor
    acted: bool

    def allowance(self) -> Allowance | None:
        """What the call was allowed, also when the memory has gone on by steps."""
        memory = self.memory
        if self.tokens != memory.seen:
            memory = copy.copy(memory)
            memory.seen = self.tokens
            memory.keys, memory.values = memory.keys.leading(self.rows), memory.values.leading(self.rows)
        return self.allowing(memory, self.call)


@dataclass
class Audit:
    """The largest excess of each layer, as (rows attended, rows held, bytes); at most 0 while every budget was kept.

    Sums stay on the device, as the ledger's do.
    """

    excess: dict[int, list[Tensor | None]] = field(default_factory=dict)
    over_layers: list[Tensor | None] = field(default_factory=lambda: [None, None, None])
    attended_BT: Tensor | None = None
    read_BT: Tensor | None = None
    text_BN: Tensor | None = None
    held_bytes: Tensor | None = None
    waiting: list[Moment] | None = None

    def read(self, attended_BT: Tensor, read_BT: Tensor) -> None:
        """Note what this call read: rows summed over this rank's real heads, and bytes of the same."""
        self.attended_BT, self.read_BT = attended_BT, read_BT

    def left(self, text_BN: Tensor, held_bytes: Tensor) -> None:
        """Note what this call left: rows of text, and bytes of all texts."""
        self.text_BN, self.held_bytes = text_BN, held_bytes

    def hold(self, memory: Memory, call: Call, allowing: Allowing, *, acted: bool) -> None:
        """Hold a call against what it may use; a dense prompt's reads are nobody's budget, what it leaves is."""
        assert self.text_BN is not None
        assert self.held_bytes is not None
        tokens, rows = int(memory.seen), memory.keys.view.shape[2]
        if self.waiting is not None:  # no budget depends on what is large
            call = replace(call, query=None, visible=None)
        read = (self.attended_BT, self.read_BT)
        moment = Moment(memory, call, allowing, tokens, rows, *read, self.text_BN, self.held_bytes, acted)
        self.attended_BT = self.read_BT = self.text_BN = self.held_bytes = None
        if self.waiting is None:
            self._hold(moment)
        else:
            self.waiting.append(moment)

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Hold these calls afterwards, while nobody measures time: those without a budget have nothing to hold."""
        self.waiting = []
        try:
            yield
        finally:
            moments, self.waiting = self.waiting, None
            for moment in moments:
                self._hold(moment)

    def _hold(self, moment: Moment) -> None:
        memory, allowance = moment.memory, moment.allowance()
        site = memory.site
        if allowance is None or not site.live:
            return
        part = site.live / site.kv_heads_real  # of a layer's bytes, this rank's
        if moment.acted and moment.attended_BT is not None and moment.read_BT is not None:
            if allowance.attended_BT is not None:
                attended_BT = moment.attended_BT / memory.copies
                self._note(memory, 0, attended_BT / site.live - allowance.attended_BT, allowance)
            if allowance.read_bytes is not None:
                self._note(memory, 2, moment.read_BT - allowance.read_bytes * part, allowance)
        if allowance.held_B is not None:
            heads = moment.text_BN.double().expand(-1, memory.keys.view.shape[1])[:, : memory.live]
            self._note(memory, 1, heads.mean(-1) - allowance.held_B, allowance)
        if allowance.held_bytes is not None:
            texts = memory.keys.view.shape[0]
            self._note(memory, 2, moment.held_bytes / texts - allowance.held_bytes * part, allowance)

    def _note(self, memory: Memory, what: int, over: Tensor, allowance: Allowance) -> None:
        layer, last = memory.site.layer, memory.site.layers - 1
        if allowance.over_layers:
            before = self.over_layers[what]
            over = over if layer == 0 or before is None else before + over
            self.over_layers[what] = over
            if layer < last:
                return
        over = over.amax()
        mine = self.excess.setdefault(layer, [None, None, None])
        known = mine[what]
        mine[what] = over if known is None else torch.maximum(known, over)

    def row(self, layer: int) -> Tensor:
        """A layer's excess, three numbers of at least 0, on the CPU."""
        found = [0.0 if one is None else float(one) for one in self.excess.get(layer, [None, None, None])]
        return torch.tensor(found, dtype=torch.float64).clamp(min=0)


def overdrawn(counted: Mapping[str, Any]) -> str:
    """What a ledger's summary says of budgets that were not kept; empty where all were."""
    told = counted.get("over_budget", {})
    # sums of bytes are of floating point; a row or a byte too many is not
    over = [f"{told[what]:g} {what.replace('_', ' ')}" for what in WHAT if told.get(what, 0) > SLACK]
    return f"went beyond its budget, at the most by {' and '.join(over)} in a layer" if over else ""
