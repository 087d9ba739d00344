"""Places of landmark attention: tokens of a text and the landmarks between them, counted from its first token.

Rows are laid out by their places, as in training; each chunk of the text is a document to the ops.

Shapes: B batch, H query heads, G key/value heads, Q rows at consecutive places, L rows of a call in its own order, W
places of a window, S rows held, N blocks, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..kernels.landmark_attention import landmark_forward
from .memory import Memory


@dataclass(frozen=True)
class Plan:
    """The arguments of method `landmark` but its budget, and the model's block.

    Attributes:
        chunk: tokens of a chunk, whole blocks.
        most: blocks before a chunk that can be chosen at all.
        block: tokens of a block.
        cutoff: share of the control token below which a row reads no block; None: the model has no such token.
    """

    chunk: int
    most: int
    choose: str
    block: int
    cutoff: float | None = None

    @property
    def length(self) -> int:
        """Places of a block, its landmark's among them."""
        return self.block + 1

    @property
    def blocks(self) -> int:
        """Blocks of a chunk."""
        return self.chunk // self.block

    @property
    def long(self) -> int:
        """Places of a chunk."""
        return self.blocks * self.length

    def place(self, number: Tensor) -> Tensor:
        """Of the token with this number in its text; of the next one, where a landmark has closed the block before."""
        return number + number // self.block


@dataclass(frozen=True)
class Window:
    """The places from the first chunk of some rows to the last of them.

    Attributes:
        row_BW: row held of each place's token.
        block_BW: block of each landmark; 0 elsewhere.
        is_mark_BW: whether a landmark stands there.
        start_BW: [B, W] int32, first row of the window of each place's chunk; beyond it for a chunk that begins before.
    """

    row_BW: Tensor
    block_BW: Tensor
    is_mark_BW: Tensor
    start_BW: Tensor

    def read(self, memory: Memory, marks_BGND: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, [B, G, W, D]; no value of a landmark is read."""
        keys, values = memory.keys.view, memory.values.view
        shape = (-1, keys.shape[1], -1, keys.shape[3])
        index = self.row_BW[:, None, :, None].expand(shape)
        keys, values = keys.gather(2, index), values.gather(2, index)
        if marks_BGND.shape[2]:
            which = self.block_BW[:, None, :, None].expand(shape)
            keys = torch.where(self.is_mark_BW[:, None, :, None], marks_BGND.gather(2, which), keys)
        return keys, values


@dataclass(frozen=True)
class Order:
    """Where the rows of a call stand among rows at consecutive places.

    Attributes:
        row_BL: of each row of the call; anything where it is none.
        none_BL: rows of the call that are none.
        rows: Q.
    """

    row_BL: Tensor
    none_BL: Tensor
    rows: int

    @cached_property
    def _into(self) -> Tensor:
        return torch.where(self.none_BL, self.rows, self.row_BL)[:, None, :, None]

    @cached_property
    def _out_of(self) -> Tensor:
        return self.row_BL.clamp(min=0)[:, None, :, None]

    def spread(self, q_BHLD: Tensor) -> Tensor:
        """Rows from the order of a call into that of their places, [B, H, Q, D]; zeros where there is none."""
        batch, heads, _, dim = q_BHLD.shape
        wide = q_BHLD.new_zeros(batch, heads, self.rows + 1, dim)
        return wide.scatter_(2, self._into.expand_as(q_BHLD), q_BHLD)[:, :, : self.rows]

    def back(self, x_BnQX: Tensor) -> Tensor:
        """The call's rows, [B, n, L, X]; zeros where there is none."""
        at_BnLX = self._out_of.expand(-1, x_BnQX.shape[1], -1, x_BnQX.shape[3])
        return x_BnQX.gather(2, at_BnLX).masked_fill(self.none_BL[:, None, :, None], 0)


@dataclass(frozen=True)
class Places:
    """Rows of some texts at places that rise by one from row to row, and end together.

    Attributes:
        place_BQ: -1 for a row that is none; those come before all others.
        begin_B: row held at which each text's first token lies; negative where it is held no more.
    """

    plan: Plan
    place_BQ: Tensor
    begin_B: Tensor

    @classmethod
    def between(cls, plan: Plan, before_B: Tensor, after_B: Tensor, most: int, lies_B: Tensor) -> Places:
        """Those by which texts grow from `before` to `after` tokens, at most so many of them; `lies` as `begin`."""
        rows = most + -(-most // plan.block)
        begin_B, end_B = plan.place(before_B), plan.place(after_B)
        place_BQ = end_B[:, None] + torch.arange(-rows, 0, device=end_B.device)
        return cls(plan, torch.where(place_BQ < begin_B[:, None], -1, place_BQ), lies_B)

    def __getitem__(self, rows: slice) -> Places:
        """Some of the rows."""
        return Places(self.plan, self.place_BQ[:, rows], self.begin_B)

    def order(self, place_BL: Tensor) -> Order:
        """Where the rows of a call at these places stand; none where a place is negative."""
        rows = self.place_BQ.shape[1]
        return Order((rows - 1) + place_BL - self.place_BQ[:, -1:], place_BL < 0, rows)

    @cached_property
    def begin(self) -> Tensor:
        """Row held at which each text's first token lies, int32."""
        return self.begin_B.int()

    @cached_property
    def none(self) -> Tensor:
        """[B, Q] which rows are none."""
        return self.place_BQ < 0

    @cached_property
    def inside(self) -> Tensor:
        """Place within the chunk, [B, Q]."""
        return self.place_BQ.clamp(min=0) % self.plan.long

    @cached_property
    def is_mark(self) -> Tensor:
        """[B, Q] which rows are those of landmarks."""
        return (self.place_BQ % self.plan.length == self.plan.block) & ~self.none

    @cached_property
    def start(self) -> Tensor:
        """Number of the first token of the chunk, [B, Q]."""
        return self.place_BQ.clamp(min=0) // self.plan.long * self.plan.chunk

    @cached_property
    def at(self) -> Tensor:
        """Number of the last token that a row sees, [B, Q]; -1 for none."""
        block = self.place_BQ.clamp(min=0) // self.plan.length * self.plan.block
        number = block + (self.place_BQ % self.plan.length).clamp(max=self.plan.block - 1)
        return torch.where(self.none, -1, number)

    @cached_property
    def cached(self) -> Tensor:
        """Blocks before the chunk, [B, Q]."""
        return self.start // self.plan.block

    @cached_property
    def held(self) -> Tensor:
        """Blocks that a row may choose from, [B, Q]."""
        return self.cached.clamp(max=self.plan.most)

    @cached_property
    def window(self) -> Window:
        """What the rows need of their chunks."""
        plan, rows = self.plan, self.place_BQ.shape[1]
        back = torch.arange(2 - rows - plan.long, 1, device=self.begin_B.device)
        place_BW = self.place_BQ[:, -1:] + back
        first_B1 = place_BW[:, :1]
        whole_B1 = -(-first_B1.clamp(min=0) // plan.long) * plan.long  # the first chunk that is here as a whole
        start_BW = (place_BW // plan.long * plan.long).maximum(whole_B1) - first_B1
        block, inside = place_BW.clamp(min=0) // plan.length, place_BW % plan.length
        number_BW = (block * plan.block + inside.clamp(max=plan.block - 1)).minimum(self.at[:, -1:])
        is_mark = (inside == plan.block) & (place_BW >= 0)
        row_BW = (number_BW + self.begin_B[:, None]).clamp(min=0)
        return Window(row_BW, torch.where(is_mark, block, 0), is_mark, start_BW.int())

    def near(self, q_BHQD: Tensor, memory: Memory, marks_BGND: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Attention of the chunk so far, [B, H, Q, D], and the log of its sum of weights; anything for none.

        Args:
            q_BHQD: queries, turned by their place in the chunk, as keys are.
            memory: keys and values of the text.
            marks_BGND: the landmarks' keys, turned likewise.
            scale: factor of q.k.
        """
        keys, values = self.window.read(memory, marks_BGND)
        return landmark_forward(q_BHQD, keys, values, self.plan.length, scale, self.window.start_BW)
