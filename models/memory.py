"""What a layer remembers: preallocated rows of keys, values and whatever else a method keeps.

Shapes: B batch, H query heads, G key/value heads of this rank, T new rows, S rows held, D head dimension, W width of a
row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Site:
    """Where a method acts: one attention layer of one rank.

    Attributes:
        layer: index of the layer, from 0.
        layers: number of layers of the model.
        kv_heads: global numbers of this rank's key/value heads; those >= `kv_heads_real` are zero heads that only pad.
        rotate: (x [B, n, T, D], by [B, T] positions) -> x turned by the model's own rotary embedding.
        artifacts: argument of the method -> file of the calibration that it needs.
    """

    layer: int
    layers: int
    kv_heads: tuple[int, ...]
    kv_heads_real: int
    head_dim: int
    rotate: Callable[[Tensor, Tensor], Tensor]
    artifacts: Mapping[str, Path] = field(default_factory=dict)

    @property
    def live(self) -> int:
        """How many of this rank's key/value heads are real; only these are counted."""
        return sum(h < self.kv_heads_real for h in self.kv_heads)


class Rows:
    """Rows [B, G, S, W] in a buffer that doubles when full, so that an append copies only what is new."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._count = 0

    @property
    def view(self) -> Tensor:
        """The rows held, [B, G, S, W]; a view."""
        assert self._buffer is not None, "nothing was appended yet"
        return self._buffer[:, :, : self._count]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one head."""
        return self.view.shape[-1] * self.view.element_size()

    def append(self, new_BGTW: Tensor) -> None:
        """Add T rows at the end."""
        end = self._count + new_BGTW.shape[2]
        if self._buffer is None or end > self._buffer.shape[2]:
            self._grow(new_BGTW, end)
        assert self._buffer is not None
        self._buffer[:, :, self._count : end] = new_BGTW
        self._count = end

    def _grow(self, like: Tensor, end: int) -> None:
        batch, heads, _, width = like.shape
        bigger = like.new_empty(batch, heads, max(end + 64, 2 * self._count), width)
        if self._buffer is not None:
            bigger[:, :, : self._count] = self.view
        self._buffer = bigger

    def keep(self, columns_BK: Tensor) -> None:
        """Hold only these columns from now on, in this order (in place: the buffer stays)."""
        view = self.view
        index = columns_BK[:, None, :, None].expand(-1, view.shape[1], -1, view.shape[3])
        kept = view.gather(2, index)
        self._count = columns_BK.shape[1]
        self.view.copy_(kept)

    def put(self, rows_BK: Tensor, new_BGKW: Tensor) -> None:
        """Overwrite rows in place."""
        view = self.view
        view.scatter_(2, rows_BK[:, None, :, None].expand(-1, view.shape[1], -1, view.shape[3]), new_BGKW)

    def reorder(self, batch: Tensor) -> None:
        """Rearrange the sequences of the batch (beam search)."""
        if self._buffer is not None:
            self._buffer = self._buffer[batch]


class Memory:
    """Keys, values and auxiliary rows of one layer, and which tokens they stand for.

    Attributes:
        seen: tokens of the batch so far, padding included.
        columns: [B, S] token number of each row held, or None while every token is held.
        constants: tensors of this layer that a method reads each step (a PCA basis); charged once.
        extra: further tensors [B, G, ...] of these sequences; charged.
        first: [B] number of the first token that is no padding; the binding says.
    """

    def __init__(self, site: Site, constants: Mapping[str, Tensor]) -> None:
        self.site = site
        self.constants = constants
        self.keys, self.values = Rows(), Rows()
        self.aux: dict[str, Rows] = {}
        self.extra: dict[str, Tensor] = {}
        self.seen = 0
        self.first: Tensor | None = None
        self.columns: Tensor | None = None

    def append(self, k_BGTD: Tensor, v_BGTD: Tensor, aux: Mapping[str, Tensor] | None = None) -> None:
        """Add T rows everywhere; `aux` maps a name to [B, G, T, W]."""
        self.keys.append(k_BGTD)
        self.values.append(v_BGTD)
        for name, rows in (aux or {}).items():
            self.aux.setdefault(name, Rows()).append(rows)
        self._number(k_BGTD)
        self.seen += k_BGTD.shape[2]

    def _number(self, new: Tensor) -> None:
        if self.columns is not None:
            numbers = torch.arange(self.seen, self.seen + new.shape[2], device=new.device).expand(new.shape[0], -1)
            self.columns = torch.cat([self.columns, numbers], 1)

    def keep(self, rows_BK: Tensor) -> None:
        """Drop all rows but these (indices into the S rows held, ascending)."""
        for part in (self.keys, self.values, *self.aux.values()):
            part.keep(rows_BK)
        self.columns = rows_BK if self.columns is None else self.columns.gather(1, rows_BK)

    def replace(self, slot_B: Tensor, k_BG1D: Tensor, v_BG1D: Tensor) -> None:
        """Write one new row over row `slot` of each sequence (a ring: what is held does not move)."""
        for part, new in ((self.keys, k_BG1D), (self.values, v_BG1D)):
            part.put(slot_B[:, None], new)
        self.columns = self.numbers_BS(slot_B.shape[0]).scatter(1, slot_B[:, None], self.seen)
        self.seen += 1

    def numbers_BS(self, batch: int) -> Tensor:
        """Token number of each row held."""
        if self.columns is not None:
            return self.columns
        view = self.keys.view
        return torch.arange(view.shape[2], device=view.device).expand(batch, -1)

    def reorder(self, batch: Tensor) -> None:
        """Rearrange the sequences of the batch."""
        self.first = None if self.first is None else self.first[batch]
        self.extra = {name: part[batch] for name, part in self.extra.items()}
        for part in (self.keys, self.values, *self.aux.values()):
            part.reorder(batch)
        self.columns = None if self.columns is None else self.columns[batch]

    @property
    def held_bytes(self) -> int:
        """Bytes held by the real heads of this rank: keys, values, auxiliary rows and constants."""
        parts = (self.keys, self.values, *self.aux.values())
        rows = sum(p.view.shape[0] * p.view.shape[2] * p.row_bytes for p in parts)
        others = sum(c.nbytes for c in (*self.constants.values(), *self.extra.values()))
        return self.site.live * rows + int(others * self.site.live / max(1, len(self.site.kv_heads)))

    @property
    def dense_bytes(self) -> int:
        """Bytes that a plain cache of every token would hold."""
        return self.site.live * self.keys.view.shape[0] * self.seen * (self.keys.row_bytes + self.values.row_bytes)


@dataclass(frozen=True)
class Call:
    """One call of attention, as a method sees it.

    Attributes:
        visible: [B, T, S] which of the rows *held* a causal model with this padding may see; None: plainly causal.
        first: [B] number of the first token that is no padding.
        phase: prefill (the prompt, at once) or decode (rows that the method acts on, T at once or one by one).
        scale: factor of q.k before the softmax.
        seen: tokens so far, these T included.
    """

    visible: Tensor | None
    first: Tensor
    phase: Phase
    scale: float
    seen: int
    new: int

    @functools.cached_property
    def numbers_T(self) -> Tensor:
        """Token numbers of the T query rows."""
        return torch.arange(self.seen - self.new, self.seen, device=self.first.device)

    @functools.cached_property
    def context_BT(self) -> Tensor:
        """How many tokens dense attention would read for each row (padding rows: none)."""
        return (self.numbers_T[None] - self.first[:, None] + 1).clamp(min=0)
