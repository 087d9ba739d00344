"""Landmark attention: blocks of the past chosen by the keys of landmark tokens that the model was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...results.fields import Within
from ..inserted import Inserted
from ..landmark import Landmarked
from ..landmark_rows import NO_BOUND, Plan, Rows, pieces
from ..ledger import Ledger
from ..memory import Call, Memory
from ..method import Method


@dataclass(frozen=True)
class Landmark(Method):
    """The k blocks whose landmark token scores highest are attended, each weighed by its landmark, and the row's chunk.

    Landmark Attention: Random-Access Infinite Context Length for Transformers (arXiv 2305.16300). Only for models that
    were trained with landmark tokens (task train), which are fed beside the text. A row attends its own chunk, which
    begins at a multiple of `chunk` tokens of its text, and k of the `blocks` last blocks before it (all, if none is
    said; older ones are dropped, first in, first out). Within a block rows share the weight of its landmark. Keys are
    kept as they are before rotation. Positions are stingy (section 3.3): k + 1 slots of a block stand before the chunk,
    the k last blocks keep their order in the slots 1 to k, older ones share slot 0, so that no distance exceeds
    (k + 1) blocks and a chunk, however long the text. Among scores that are equal in half precision (in the first layer
    many are) the oldest block wins. A prompt is read the same way, since no such model can attend densely far beyond
    its training length. Read for a row: the landmarks' keys, its chunk so far, and the chosen blocks; held: everything,
    or `blocks` blocks and a chunk, and all landmarks' keys.

    Arguments: `k` blocks; `chunk` in tokens, a multiple of the model's block; `choose` a set of blocks for each row and
    query head, for each `row` (the highest score of any head), or for each `head` (the highest score of any row of the
    chunk so far: the paper takes later rows of the chunk too, which decoding cannot know).
    """

    k: Annotated[int, Within(0)] = 4
    chunk: Annotated[int, Within(1)] = 250
    blocks: Annotated[int, Within(1)] | None = None
    choose: Literal["row_and_head", "row", "head"] = "row_and_head"
    version: ClassVar[int] = 1
    shape: ClassVar[Literal["direct", "select", "evict"]] = "select"

    def inserts(self, config: Any) -> Inserted:
        """The landmark tokens.

        Raises:
            ValueError: the model was trained without them, with a control token, or with a block that does not divide.
        """
        said = Landmarked.of(config)
        if said.gated:
            raise ValueError("landmark: the control token is for training only yet; train with `control: 0`")
        if self.chunk % said.block:
            near = max(1, round(self.chunk / said.block)) * said.block
            raise ValueError(
                f"landmark: chunk {self.chunk} is no multiple of the model's block {said.block}: take {near}"
            )
        return Blocks(self, said)

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Choose, gather, attend."""
        plan = self.plan(Landmarked.of(memory.site.config).block)
        at_BT = call.numbers_T[None] - call.first[:, None]
        parts, rows = [], []
        for piece in pieces(q_BHTD, plan):
            found = Rows(plan, memory, call, at_BT[:, piece], at_BT[:, piece] * 0).attend(q_BHTD[:, :, piece])
            parts.append(found.out)
            rows.append(found.read_BGT)
        cached_BT = (at_BT // plan.chunk * (plan.chunk // plan.block)).clamp(max=plan.most) if self.k else 0
        landmarks_BT = (cached_BT + at_BT % plan.chunk // plan.block).clamp(min=0)
        extra = landmarks_BT.double() * memory.keys.row_bytes * memory.site.live
        ledger.count(memory, call, torch.cat(rows, 2), extra)
        return torch.cat(parts, 2)

    attend_dense = attend

    def settle(self, memory: Memory, call: Call) -> None:
        """Drop rows that no text can need any more."""
        if self.blocks is None:
            return
        block = Landmarked.of(memory.site.config).block
        next_B = memory.seen - call.first  # the row that comes next
        oldest_B = (next_B // self.chunk * self.chunk - self.blocks * block).clamp(min=0) + call.first
        held = memory.numbers_BS(call.first.shape[0])
        drop = int(oldest_B.min()) - int(held[0, 0])
        if drop > 0:
            rows = torch.arange(drop, held.shape[1], device=held.device)
            memory.keep(rows.expand(held.shape[0], 1, -1))

    def plan(self, block: int) -> Plan:
        """These arguments for a model of that block."""
        return Plan(self.k, self.chunk, self.blocks or NO_BOUND, self.choose, block)


@dataclass(frozen=True)
class Blocks(Inserted):
    """The landmarks: one behind each block that is full. A mark is the block's number within its text."""

    method: Landmark
    said: Landmarked

    def plan(self, before_B: Tensor, after_B: Tensor) -> tuple[Tensor, Tensor]:
        """Those whose blocks become full."""
        old, new = before_B // self.said.block, after_B // self.said.block
        most = int((new - old).max())
        mark = old[:, None] + torch.arange(most, device=old.device)
        mark = mark.masked_fill(mark >= new[:, None], -1)
        return torch.full_like(mark, self.said.token), mark

    def write(self, memory: Memory, k_BGMD: Tensor, mark_BM: Tensor) -> None:
        """Each text's landmarks at their blocks' numbers."""
        batch, groups, _, dim = k_BGMD.shape
        before = memory.extra.get("landmarks", k_BGMD.new_zeros(batch, groups, 0, dim))
        most = max(int(mark_BM.max()) + 1 if mark_BM.numel() else 0, before.shape[2])
        grown = k_BGMD.new_zeros(batch, groups, most + 1, dim)  # what is none goes into the last row, and out
        grown[:, :, : before.shape[2]] = before
        place = torch.where(mark_BM < 0, most, mark_BM)[:, None, :, None].expand_as(k_BGMD)
        memory.extra["landmarks"] = grown.scatter(2, place, k_BGMD)[:, :, :most]

    def attend(self, q_BHMD: Tensor, memory: Memory, call: Call, mark_BM: Tensor) -> Tensor:
        """A landmark reads what the last row of its block reads, one position later; it is no row of the text."""
        plan = self.method.plan(self.said.block)
        at_BM = torch.where(mark_BM < 0, -1, (mark_BM + 1) * plan.block - 1)
        later = torch.ones_like(at_BM)
        parts = [
            Rows(plan, memory, call, at_BM[:, piece], later[:, piece]).attend(q_BHMD[:, :, piece]).out
            for piece in pieces(q_BHMD, plan)
        ]
        return torch.cat(parts, 2) if parts else q_BHMD
