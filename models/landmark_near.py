"""The rows of a chunk of landmark attention, text and landmarks side by side as in training: one call for many chunks.

A place counts the tokens of a text and the landmarks between them from its first token. Chunks are documents to the
op: a row sees what is before it in its own chunk.

Shapes: B batch, H query heads, G key/value heads, T query rows, W places, the last Q of which have queries, S rows
held, N blocks, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.landmark_attention import landmark_forward
from .memory import Memory


@dataclass(frozen=True)
class Window:
    """The places that some query rows need.

    Attributes:
        block: tokens of a block.
        place_BW: [B, W] places, ascending; negative before a text.
        start_BW: [B, W] the first row of the window of each row's chunk; beyond it for a chunk that begins before.
        queries: Q.
    """

    block: int
    place_BW: Tensor
    start_BW: Tensor
    queries: int

    @classmethod
    def of(cls, place_BT: Tensor, chunk: int, block: int, queries: int) -> Window:
        """That of query rows at these places (negative: none), which span at most `queries` places; in tokens, both."""
        length = block + 1
        long = chunk // block * length
        width, last_B1 = queries + long - 1, place_BT.amax(1, keepdim=True)
        place_BW = last_B1 + torch.arange(1 - width, 1, device=place_BT.device)
        whole_B1 = -(-place_BW[:, :1].clamp(min=0) // long) * long  # begin of the first chunk that is here as a whole
        start_BW = (place_BW // long * long).maximum(whole_B1) - place_BW[:, :1]
        return cls(block, place_BW, start_BW, queries)

    def attend(
        self, q_BHTD: Tensor, place_BT: Tensor, memory: Memory, marks_BGND: Tensor, begin_B: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Attention of rows at these places, [B, H, T, D], and the log of their sums of weights; 0 and -inf for none.

        Args:
            q_BHTD: queries, turned by their place in the chunk, as keys are.
            place_BT: [B, T] places; negative: no row.
            memory: keys and values of the text.
            marks_BGND: the landmarks' keys.
            begin_B: row held at which each text's first token lies, or would lie.
            scale: factor of q.k.
        """
        at_BT = self.queries - 1 - place_BT.amax(1, keepdim=True) + place_BT
        at_BT = torch.where(place_BT < 0, self.queries, at_BT)  # rows that are none go beside the others
        batch, heads, _, dim = q_BHTD.shape
        wide = q_BHTD.new_zeros(batch, heads, self.queries + 1, dim)
        wide.scatter_(2, at_BT[:, None, :, None].expand_as(q_BHTD), q_BHTD)
        keys, values = self._read(memory, marks_BGND, begin_B)
        starts = self.start_BW.int()
        out, lse = landmark_forward(wide[:, :, :-1], keys, values, self.block + 1, scale, starts)
        none_BT = place_BT < 0
        back = at_BT.clamp(max=self.queries - 1)[:, None]
        out = out.gather(2, back[..., None].expand_as(q_BHTD)).masked_fill(none_BT[:, None, :, None], 0.0)
        lse = lse.gather(2, back.expand(-1, heads, -1)).masked_fill(none_BT[:, None], -torch.inf)
        return out, lse

    def _read(self, memory: Memory, marks_BGND: Tensor, begin_B: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the window, [B, G, W, D]; no value of a landmark is read."""
        number_BW = self.place_BW.clamp(min=0) // (self.block + 1)
        inside_BW = self.place_BW % (self.block + 1)
        row_BW = number_BW * self.block + inside_BW.clamp(max=self.block - 1) + begin_B[:, None]
        keys, values = memory.keys.view, memory.values.view
        index = row_BW.clamp(0, keys.shape[2] - 1)[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
        keys, values = keys.gather(2, index), values.gather(2, index)
        if marks_BGND.shape[2]:
            which = number_BW.clamp(max=marks_BGND.shape[2] - 1)[:, None, :, None].expand_as(index)
            is_mark = (inside_BW == self.block)[:, None, :, None]
            keys = torch.where(is_mark, marks_BGND.gather(2, which), keys)
        return keys, values
