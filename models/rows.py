"""Preallocated rows of one kind, and the clock by which decode steps that never ask the host find their place in them.

Shapes: B batch, G key/value heads of this rank, N sets of rows, T new rows, S rows held, W width of a row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..kernels.keep_rows import OP as KEEP_ROWS

T = TypeVar("T")
MOVED = 3  # tensors whose rows one launch moves
WIDE = 16  # rows beside each other in memory: each column begins at a multiple, so that loads are 16 bytes wide


class Clock:
    """Where decode steps stand, on the device: a step that is captured once must find its place anew at each replay.

    Attributes:
        begun: tokens when the clock began.
        ticks: steps that Python took part in; a replay is none.
        row: [1] number of the token under way; before the first tick that of the last one.
        seen: [] tokens so far, that one included.
        lo_B, hi_B: the rows [lo, hi) that the token sees where nothing is evicted; int32.
        context_BT: [B, 1] how many these are.
        followed: further numbers that go up by one with each token.
    """

    def __init__(self, begun: int, first_B: Tensor) -> None:
        self.begun, self.ticks = begun, 0
        self.row = torch.full((1,), begun - 1, device=first_B.device)
        self.seen = torch.full((), begun, device=first_B.device)
        self.lo_B = first_B.int()
        self.hi_B = torch.full_like(self.lo_B, begun)
        self.context_BT = (begun - first_B)[:, None]
        self.followed: list[Tensor] = []
        self._known: dict[Hashable, Any] = {}

    def tick(self) -> None:
        """On to the next token."""
        for number in (self.row, self.seen, self.hi_B, self.context_BT, *self.followed):
            number.add_(1)
        self.ticks += 1
        self._known = {}

    def follow(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        """Copies of numbers of one dtype that go up by one with each token from now on, all in one launch."""
        self.followed.append(torch.cat([number.flatten() for number in numbers]))
        parts = self.followed[-1].split([number.numel() for number in numbers])
        return [part.view_as(number) for part, number in zip(parts, numbers, strict=True)]

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        """What is the same in every layer of a step is computed by the first of them."""
        if key not in self._known:
            self._known[key] = work()
        known: T = self._known[key]
        return known


class Growth(NamedTuple):
    """Where text stands in rows that were cut once and only grow; what is no text lies before it.

    Attributes:
        lo, hi: [B N] rows [lo, hi) of each text and set that are text, the token under way included; int32.
        rows_BN: how many these are.
    """

    lo: Tensor
    hi: Tensor
    rows_BN: Tensor


class Rows:
    """Rows [B, G, S, W] in a buffer that doubles when full, so that an append copies only what is new.

    Laid out "rows" by rows, as S contiguous rows, or "columns" by columns: the view is the same, its strides are not.
    A row stands for a token, or for so many `tokens` that follow each other.

    Once pinned, the buffer is all there will be: the view is the whole of it, what lies past `count` is undefined, and
    an append writes where a clock says.
    """

    def __init__(self, room: int = 0, by: Literal["rows", "columns"] = "rows", tokens: int = 1) -> None:
        self._by, self._tokens = by, tokens
        self._buffer: Tensor | None = None
        self._count, self._room = 0, room
        self._clock: Clock | None = None
        self._size, self._apart = 0, 0
        self._known: tuple[Tensor, Tensor] | None = None

    @property
    def view(self) -> Tensor:
        """The rows held, [B, G, S, W]; a view."""
        assert self._buffer is not None, "nothing was appended yet"
        count = self._count if self._clock is None else self._size
        known = self._known  # a layer asks for it dozens of times
        if known is None or known[0] is not self._buffer or known[1].shape[2] != count:
            known = self._known = (self._buffer, self._buffer[:, :, :count])
        return known[1]

    @property
    def count(self) -> int | Tensor:
        """Rows held that are defined."""
        if self._clock is None or self._size == self._count:
            return self._count
        return -(-self._clock.seen // self._tokens) + self._apart

    @property
    def place(self) -> Tensor:
        """[1] the row that the next append writes, once pinned."""
        assert self._clock is not None
        assert self._tokens == 1
        clock, apart = self._clock, self._apart
        return clock.row if apart == 0 else clock.once(("place", apart), lambda: clock.row + apart)

    def pin(self, more: int, clock: Clock) -> None:
        """Make room for so many more tokens, once and for all; `more` = 0 for rows that are only overwritten."""
        assert self._buffer is not None
        begun, end = (-(-tokens // self._tokens) for tokens in (clock.begun, clock.begun + more))
        self._size = self._count + end - begun
        if self._buffer.shape[2] < self._size:
            whole = self._empty(self._buffer, self._size)
            whole[:, :, : self._count] = self.view
            self._buffer, self._known = whole, None  # else the old one lives on beside it
        self._buffer[:, :, : self._size][:, :, self._count :] = 0  # a product with a masked weight must not meet NaN
        self._clock, self._apart = clock, self._count - begun  # evicted rows take no place

    def apart(self) -> Rows:
        """The rows of each head as a sequence of its own, [B G, 1, S, W]; a view, to be read only."""
        assert self._buffer is not None, "nothing was appended yet"
        found = copy.copy(self)
        found._buffer = self._buffer.flatten(0, 1)[:, None]  # noqa: SLF001 - its own kind
        return found

    def leading(self, count: int) -> Rows:
        """The first rows; a view, to be read only."""
        found = copy.copy(self)
        found._count = count  # noqa: SLF001 - its own kind
        return found

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one head."""
        assert self._buffer is not None, "nothing was appended yet"
        return self._buffer.shape[-1] * self._buffer.element_size()

    def append(self, new_BGTW: Tensor) -> None:
        """Add T rows at the end."""
        if self._clock is not None:
            self.view.index_copy_(2, self.place, new_BGTW)
            return
        end = self._count + new_BGTW.shape[2]
        if self._buffer is None or end > self._buffer.shape[2]:
            self._grow(new_BGTW, end)
        assert self._buffer is not None
        self._buffer[:, :, self._count : end] = new_BGTW
        self._count = end

    def _grow(self, like: Tensor, end: int) -> None:
        bigger = self._empty(like, max(end + 64, 2 * self._count, self._room))
        if self._buffer is not None:
            bigger[:, :, : self._count] = self.view
        self._buffer = bigger

    def _empty(self, like: Tensor, rows: int) -> Tensor:
        batch, heads, _, width = like.shape
        if self._by == "rows":
            return like.new_empty(batch, heads, rows, width)
        whole = -(-rows // WIDE) * WIDE
        return like.new_empty(batch, heads, width, whole).transpose(2, 3)

    def _laid(self, rows: Tensor) -> Tensor:
        """The same, in this layout."""
        return rows if self._by == "rows" else rows.transpose(2, 3).contiguous().transpose(2, 3)

    @property
    def by_rows(self) -> bool:
        """Whether a row is contiguous."""
        return self._by == "rows"

    def gather(self, rows_BNK: Tensor) -> None:
        """Move these rows to the beginning, through a copy of them; what becomes of holes is not known."""
        view = self.view
        index = rows_BNK.clamp(min=0)[..., None].expand(-1, view.shape[1], -1, view.shape[3])
        view[:, :, : rows_BNK.shape[2]] = view.gather(2, index)

    def cut(self, kept: int, coming: int) -> None:
        """Hold only the first rows; a buffer left mostly empty is given back. Room for `coming` rows is no waste."""
        assert self._clock is None
        assert self._buffer is not None
        self._count = kept
        if self._buffer.shape[2] > max(2 * (kept + coming + 64), self._room):
            smaller = self._empty(self._buffer, max(kept + 64, self._room))
            smaller[:, :, :kept] = self.view
            self._buffer = smaller

    def repeat(self, times: int) -> None:
        """Hold each head so many times, copies side by side."""
        self._buffer, self._known = self._laid(self.view.repeat_interleave(times, 1)), None

    def put(self, rows_BK: Tensor, new_BGKW: Tensor) -> None:
        """Overwrite rows in place."""
        view = self.view
        view.scatter_(2, rows_BK[:, None, :, None].expand(-1, view.shape[1], -1, view.shape[3]), new_BGKW)

    def reorder(self, batch: Tensor) -> None:
        """Rearrange the sequences of the batch (beam search)."""
        if self._buffer is not None:
            self._buffer, self._known = self._laid(self._buffer[batch]), None  # else the old one lives on beside it


def keep_all(parts: Sequence[Rows], rows_BNK: Tensor, coming: int = 0) -> None:
    """Hold only these rows of all parts from now on, in place, as many parts at a time as one launch moves.

    They ascend; -1, before all others, is a hole, of which nothing is known. Room for `coming` rows is no waste.
    """
    alike: dict[tuple[int, ...], list[Tensor]] = {}  # only tensors of the same texts, heads and rows go together
    for view in (part.view for part in parts if part.by_rows):
        alike.setdefault(tuple(view.shape[:3]), []).append(view)
    for views in alike.values():
        for first in range(0, len(views), MOVED):
            some = views[first : first + MOVED]
            KEEP_ROWS(*some, *[None] * (MOVED - len(some)), rows_BNK)
    for part in parts:
        if not part.by_rows:
            part.gather(rows_BNK)
        part.cut(rows_BNK.shape[2], coming)
