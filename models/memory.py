"""What a layer remembers: preallocated rows of keys, values and whatever else a method keeps.

Shapes: B batch, G key/value heads of this rank, N sets of rows (1: every head's; or G), T new rows,
S rows held, D head dimension.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .call import Call
from .host_rows import HostRows
from .rotation import Turning
from .rows import Clock, Growth, Rows, keep_all


@dataclass(frozen=True)
class Site:
    """Where a method acts: one attention layer of one rank.

    Attributes:
        layer: index of the layer, from 0.
        layers: number of layers of the model.
        kv_heads: global numbers of this rank's key/value heads; those >= `kv_heads_real` are zero heads that only pad.
        kv_heads_real: number of key/value heads that the model has.
        head_dim: D.
        rotate: (x [B, n, T, D], by [B, T] positions) -> x turned by the model's own rotary embedding.
        artifacts: argument of the method -> file of the calibration that it needs.
        config: the model's.
    """

    layer: int
    layers: int
    kv_heads: tuple[int, ...]
    kv_heads_real: int
    head_dim: int
    rotate: Turning
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    config: Any = None

    @functools.cached_property
    def live(self) -> int:
        """How many of this rank's key/value heads are real; only these are counted."""
        return sum(h < self.kv_heads_real for h in self.kv_heads)

    def need_every_head(self, why: str) -> None:
        """Refuse to act on a part of a layer's heads.

        Raises:
            ValueError: other ranks hold the other heads.
        """
        if self.live < self.kv_heads_real:
            raise ValueError(
                f"{why} over all {self.kv_heads_real} key/value heads of a layer, this rank holds {self.live}: "
                "run on 1 rank"
            )


class Memory:
    """Keys, values and auxiliary rows of one layer, and which tokens they stand for.

    Attributes:
        seen: tokens of the batch so far, padding included.
        columns: [B, N, S] token number of each row held, or None while every token is held. Heads that hold fewer rows
            than others begin with holes, numbered -1.
        copies: how often each key/value head is held (more than once where each query head keeps rows of its own).
        constants: tensors of this layer that a method reads each step (a PCA basis); charged once.
        extra: further tensors [B, G, ...] of these sequences; charged.
        host: rows that were moved to the host; not held, not charged.
        first: [B] number of the first token that is no padding; the binding says.
        prompt: [B] tokens of each text at the end of its last prompt, padding left out; None before.
        prompt_seen: tokens of the batch then, padding included.
        allowed: [B] rows of a head that an evicting method's budget then allowed.
        given: what rows after a prompt go by, as their method noted it; not held, not charged.
        growth: where the text stands, once pinned after a cut and growing.
        joined: tables among the constants, beside those of other layers [L, N, M], and where; copies, not charged.
    """

    def __init__(self, site: Site, constants: Mapping[str, Tensor], room: int = 0) -> None:
        self.site = site
        self.constants = constants
        self.room = room
        self.keys, self.values = Rows(room), Rows(room)
        self.aux: dict[str, Rows] = {}
        self.extra: dict[str, Tensor] = {}
        self.host: HostRows | None = None
        self.copies = 1
        self.first: Tensor | None = None
        self.prompt: Tensor | None = None
        self.prompt_seen = 0
        self.allowed: Tensor | None = None
        self.columns: Tensor | None = None
        self.clock: Clock | None = None
        self.given: dict[str, Tensor] = {}
        self.growth: Growth | None = None
        self.joined: dict[str, tuple[Tensor, int]] = {}
        self._tokens = 0
        self._written = 0
        self._fixed: dict[str, Tensor] = {}

    @property
    def seen(self) -> int | Tensor:
        """Tokens so far; on the device once pinned."""
        clock = self.clock
        if clock is None:
            return self._tokens
        return clock.seen if self._written == clock.ticks else clock.row[0]  # the token under way is not written yet

    @seen.setter
    def seen(self, tokens: int) -> None:
        assert self.clock is None
        self._tokens = tokens

    def pin(self, more: int, clock: Clock) -> None:
        """From now on nothing moves: room for `more` rows, one token a step where the clock says, one place for all.

        What a step computes anew (columns, extra) is written back to where it was, since a captured step reads there.
        """
        for part in (self.keys, self.values, *self.aux.values()):
            part.pin(more, clock)
        if self.columns is not None and more:  # rows to come are numbered now: none is seen before the clock is there
            coming = torch.arange(clock.begun, clock.begun + more, device=self.columns.device)
            self.columns = torch.cat([self.columns, coming.expand(*self.columns.shape[:2], -1)], 2)
        self.clock, self._written = clock, clock.ticks

    def settle(self) -> None:
        """At the end of a call: put what was computed anew where it was before, if pinned."""
        if self.clock is None:
            return
        self.extra = {name: self._fix(name, part) for name, part in self.extra.items()}
        self.columns = None if self.columns is None else self._fix("", self.columns)

    def _fix(self, name: str, new: Tensor) -> Tensor:
        """The place of a tensor; the first call chooses it."""
        place = self._fixed.setdefault(name, new)
        return place if place is new else place.copy_(new)

    def append(self, k_BGTD: Tensor, v_BGTD: Tensor, aux: Mapping[str, Tensor] | None = None) -> None:
        """Add T rows everywhere; `aux` maps a name to [B, G, T, W]."""
        more = [(self.aux.setdefault(name, Rows(self.room)), rows) for name, rows in (aux or {}).items()]
        for part, rows in ((self.keys, k_BGTD), (self.values, v_BGTD), *more):
            part.append(rows.repeat_interleave(self.copies, 1) if self.copies > 1 else rows)
        self.landed(k_BGTD)

    def advance(self, new: int) -> None:
        """Note that so many rows were written, and their numbers."""
        self._tokens += new if self.clock is None else 0
        self._written = 0 if self.clock is None else self.clock.ticks

    def landed(self, new_BGTD: Tensor) -> None:
        """Note that T rows were written at the end."""
        if self.columns is not None and self.clock is None:
            numbers = torch.arange(self._tokens, self._tokens + new_BGTD.shape[2], device=new_BGTD.device)
            self.columns = torch.cat([self.columns, numbers.expand(*self.columns.shape[:2], -1)], 2)
        self.advance(new_BGTD.shape[2])

    def keep(self, rows_BNK: Tensor, coming: int = 0) -> None:
        """Drop all rows but these (indices into the S rows held, ascending; -1, before all others, for a hole).

        As many as `coming` are likely to be appended at once: their room is held.
        """
        rows = rows_BNK.clamp(min=0)
        keep_all((self.keys, self.values, *self.aux.values()), rows_BNK, coming)
        numbers = self.numbers_BNS(rows.shape[0])
        sets = max(numbers.shape[1], rows.shape[1])
        self.columns = numbers.expand(-1, sets, -1).gather(2, rows.expand(-1, sets, -1)).masked_fill(rows_BNK < 0, -1)

    def copy_heads(self, copies: int) -> None:
        """Hold each key/value head several times from now on, so that each query head can keep rows of its own."""
        if self.copies == copies:
            return
        assert self.copies == 1
        for part in (self.keys, self.values, *self.aux.values()):
            part.repeat(copies)
        if self.columns is not None and self.columns.shape[1] > 1:
            self.columns = self.columns.repeat_interleave(copies, 1)
        self.copies = copies

    def replace(self, slot_B: Tensor, k_BG1D: Tensor, v_BG1D: Tensor) -> None:
        """Write one new row over row `slot` of each sequence (a ring: what is held does not move)."""
        numbers = self.numbers_BNS(slot_B.shape[0])
        here = torch.arange(numbers.shape[2], device=slot_B.device) == slot_B[:, None, None]
        self.columns = torch.where(here, self.seen, numbers)
        self.put(slot_B, k_BG1D, v_BG1D)

    def put(self, slot_B: Tensor, k_BG1D: Tensor, v_BG1D: Tensor) -> None:
        """The same where the row's number has been noted."""
        for part, new in ((self.keys, k_BG1D), (self.values, v_BG1D)):
            part.put(slot_B[:, None], new)
        self.advance(1)

    def end_prompt(self, call: Call) -> None:
        """Note how long the text is now, if these rows were a prompt's; a first token alone is none."""
        if call.phase == "prefill" and self._tokens > 1:
            self.prompt, self.prompt_seen = call.context_BT[:, -1], self._tokens

    def numbers_BNS(self, batch: int) -> Tensor:
        """Token number of each row held; holes -1."""
        if self.columns is not None:
            return self.columns
        # while all is held, a row's place is its number; rows of a pinned memory that are not written yet lie ahead
        count = self._tokens if self.clock is None else self.keys.view.shape[2]
        return torch.arange(count, device=self.keys.view.device).expand(batch, 1, -1)

    def numbers_BS(self, batch: int) -> Tensor:
        """The same where every head holds the same rows."""
        numbers = self.numbers_BNS(batch)
        assert numbers.shape[1] == 1
        return numbers[:, 0]

    def text_rows_BN(self, first_B: Tensor) -> Tensor:
        """How many rows held are text: no padding, no hole."""
        if self.columns is None:
            return (self.seen - first_B)[:, None]
        if self.growth is not None:
            return self.growth.rows_BN
        there = self.columns >= first_B[:, None, None]
        return (there if self.clock is None else there & (self.columns < self.seen)).sum(-1)

    def reorder(self, batch: Tensor) -> None:
        """Rearrange the sequences of the batch; not once pinned, when what steps go by was noted for these."""
        assert self.clock is None
        for name in ("first", "prompt", "allowed", "columns", "host"):
            part = getattr(self, name)
            setattr(self, name, None if part is None else part[batch])
        self.extra = {name: part[batch] for name, part in self.extra.items()}
        for rows in (self.keys, self.values, *self.aux.values()):
            rows.reorder(batch)

    def fork(self, batch: Tensor) -> Memory:
        """A copy with these sequences; this memory stays as it is."""
        twin = copy.copy(self)
        twin.keys, twin.values = copy.copy(self.keys), copy.copy(self.values)
        twin.aux = {name: copy.copy(part) for name, part in self.aux.items()}
        twin.given, twin._fixed = dict(self.given), {}  # noqa: SLF001 - its own kind; each has places of its own
        twin.reorder(batch)
        return twin

    @property
    def live(self) -> int:
        """How many of the heads held are real."""
        return self.site.live * self.copies

    @property
    def held_bytes(self) -> Tensor:
        """Bytes held by the real heads of this rank: keys, values, auxiliary rows and constants; a hole is none."""
        parts = (self.keys, self.values, *self.aux.values())
        rows = sum(p.view.shape[0] * p.row_bytes * p.count for p in parts)
        others = sum(c.nbytes for c in (*self.constants.values(), *self.extra.values()))
        whole = self.live * rows + int(others * self.site.live / max(1, len(self.site.kv_heads)))
        return self.keys.view.new_zeros((), dtype=torch.float64) + whole - self._hole_bytes(parts)

    def _hole_bytes(self, parts: Sequence[Rows]) -> Tensor | int:
        if self.columns is None:
            return 0
        holes = (self.columns < 0).expand(-1, self.keys.view.shape[1], -1)[:, : self.live].sum()
        return holes * sum(p.row_bytes for p in parts if p.view.shape[2] == self.columns.shape[2])

    @property
    def dense_row_bytes(self) -> int:
        """Bytes of a whole key and its value, also where the keys held are shorter."""
        return self.site.head_dim * self.keys.view.element_size() + self.values.row_bytes

    @property
    def dense_bytes(self) -> int | Tensor:
        """Bytes that a plain cache of every token would hold."""
        return self.site.live * self.keys.view.shape[0] * self.seen * self.dense_row_bytes
