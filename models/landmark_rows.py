"""Query rows of landmark attention at inference: which blocks they choose, and one softmax over what they read.

Keys are held turned by their place in their chunk, landmarks counted, and landmarks' keys as they came.

Shapes: B batch, H query heads, X of them or 1 that choose apart, G key/value heads, T query rows, N blocks, K chosen
ones, M of the newest blocks, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.landmark_retrieve import OP as LANDMARK_RETRIEVE
from ..kernels.select_topk import OP as SELECT_TOPK
from . import attend
from .landmark_host import Source, fetched
from .landmark_near import Window
from .memory import Call, Memory

NO_BOUND = 2**31
# Rows attended at once, and elements of scores or queries made for them: a GPU would wait for launches.
AT_ONCE = {"cpu": (attend.ROWS_AT_ONCE, 2**24), "cuda": (2**14, 2**27)}


@dataclass(frozen=True)
class Plan:
    """The arguments of method `landmark` but its budget, and the model's block.

    Attributes:
        most: blocks before a chunk that can be chosen at all.
        cutoff: share of the control token below which a row reads no block; None: the model has no such token.
    """

    chunk: int
    most: int
    choose: str
    block: int
    cutoff: float | None = None

    @property
    def length(self) -> int:
        """Tokens of a block, its landmark among them."""
        return self.block + 1

    def turned(self, number: Tensor) -> Tensor:
        """Place within its chunk, landmarks counted, of the token with this number in its text."""
        inside = number % self.chunk
        return inside + inside // self.block


def pieces(q_BHTD: Tensor, widest: int, blocks: int) -> Iterator[slice]:
    """Query rows that choose up to `widest` of so many blocks, so many at once that what is made for them is small."""
    (batch, heads, new, dim), (rows, made) = q_BHTD.shape, AT_ONCE[q_BHTD.device.type]
    each = max(1, min(rows, made // (batch * heads * max(blocks, dim * min(widest, blocks), dim))))
    return (slice(start, min(start + each, new)) for start in range(0, new, each))


class Found(NamedTuple):
    """Output [B, H, T, D], rows of the text that were read for it [B, G, T], and the chosen blocks [B, X, T, K]."""

    out: Tensor
    read_BGT: Tensor
    chosen: Tensor


@dataclass
class Rows:
    """Some query rows over a memory.

    Attributes:
        at: [B, T] the last token of its text that a row sees; -1 for padding. From row to row it rises by one, that of
            landmarks by a block.
        later: positions that a row stands behind that token: 1 for a landmark, which closes its block.
        k: [B, T] blocks that a row may choose, the same for all rows of a chunk.
        widest: the largest k.
    """

    plan: Plan
    memory: Memory
    call: Call
    at: Tensor
    later: int
    k: Tensor
    widest: int
    start: Tensor = field(init=False)
    cached: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.at.clamp(min=0) // self.plan.chunk * self.plan.chunk
        self.cached = self.start // self.plan.block  # blocks before the chunk

    def attend(self, q_BHTD: Tensor) -> Found:
        """One softmax over the rows of the chunk and of the chosen blocks."""
        marks = self.memory.extra["landmarks"]
        chosen, slot = self._choose(q_BHTD, marks)
        marks = self._turned_marks(marks)
        out, lse = self._near(q_BHTD, marks)
        far, far_lse = self._far(q_BHTD, chosen, slot, marks)
        far_lse = self._controlled(q_BHTD, far_lse)
        share = torch.where(far_lse == -torch.inf, 0.0, torch.sigmoid(far_lse - lse))[..., None]
        kept = share
        if self.plan.cutoff:  # without the blocks of rows that give the control token too little
            few = share < self.plan.cutoff
            kept, chosen = share.masked_fill(few, 0.0), chosen.masked_fill(few, -1)
        out = out.float() * (1 - share) + far.float() * kept  # what a cut-off leaves is not scaled up
        return Found(out.to(q_BHTD.dtype), self._read(chosen), chosen)

    def kept(self, chosen: Tensor) -> Tensor:
        """Which tokens so far are attended, [B, X, T, seen]: the chunk so far, and those of the blocks chosen."""
        number = torch.arange(int(self.call.seen), device=chosen.device) - self.call.first[:, None]
        number, many = number[:, None, None], self.memory.extra["landmarks"].shape[2]
        hit = torch.zeros(*chosen.shape[:3], many + 1, dtype=torch.bool, device=chosen.device)
        hit = hit.scatter(3, torch.where(chosen < 0, many, chosen), value=True)
        hit[..., many] = False  # what is in no block that is full
        start, at = self.start[:, None, :, None], self.at[:, None, :, None]
        block = (number.clamp(min=0) // self.plan.block).clamp(max=many)
        old = hit.gather(3, block.expand(*hit.shape[:3], -1)) & (number >= 0) & (number < start)
        return old | ((number >= start) & (number <= at))

    def _place(self) -> Tensor:
        """Position of each row within its chunk, landmarks counted, [B, T]."""
        return self.plan.turned(self.at.clamp(min=0)) + self.later

    def _before(self) -> Tensor:
        """Positions that stand before the chunk: all blocks while they are few, then k + 1 slots; [B, T]."""
        held = self.cached.clamp(max=self.plan.most)
        return held.minimum(self.k + 1) * self.plan.length

    def _turn(self, x_BHTD: Tensor, by_BT: Tensor) -> Tensor:
        return self.memory.site.rotate(x_BHTD, by_BT)

    def _begin(self) -> Tensor:
        """Row held at which each text's first token lies; negative where it is held no more; [B]."""
        return self.call.first - self.memory.numbers_BS(self.at.shape[0])[:, 0]

    def _turned_marks(self, marks_BGND: Tensor) -> Tensor:
        """The landmarks' keys, turned by their place in their chunk as the keys of their blocks are."""
        number = torch.arange(marks_BGND.shape[2], device=marks_BGND.device) % (self.plan.chunk // self.plan.block)
        return self._turn(marks_BGND, (number * self.plan.length + self.plan.block)[None])

    def _choose(self, q_BHTD: Tensor, marks_BGND: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks [B, X, T, K], oldest first, -1 for none; and the slots that they are put into."""
        batch, _, rows, _ = q_BHTD.shape
        many = marks_BGND.shape[2]
        keep = min(self.widest, many)
        if not keep:
            nothing = self.at[:, None, :, None].expand(-1, q_BHTD.shape[1], -1, 0)
            return nothing, nothing
        age = self.cached[..., None] - 1 - torch.arange(many, device=self.at.device)  # 0: the newest
        is_there = ((age >= 0) & (age < self.plan.most))[:, None]
        score = self._landmark_scores(q_BHTD, marks_BGND).masked_fill(~is_there, -torch.inf)
        # landmarks are all alike in the first layer: rounding must not choose between equals
        score = self._together(score).half().float()
        k = self.k[:, None].expand(-1, score.shape[1], -1)
        best, _ = SELECT_TOPK(score.reshape(-1, 1, many), k.reshape(-1).int(), keep)
        best = best.view(batch, -1, rows, keep).long()
        held, cached, k = (part[:, None, :, None] for part in (self._held(), self.cached, self.k))
        recent = (cached - best) <= k
        return best, torch.arange(keep, device=best.device) + (recent & (held > k)).long()

    def _held(self) -> Tensor:
        """Blocks that a row may choose from, [B, T]."""
        return self.cached.clamp(max=self.plan.most)

    def _landmark_scores(self, q_BHTD: Tensor, marks_BGND: Tensor) -> Tensor:
        """Scores [B, H, T, N] of the landmarks at the slots that their blocks' ages give them; float32.

        All but the newest M blocks share slot 0. Those are of another place for the rows of each chunk: their scores,
        each with the query turned to its slot, replace what slot 0 gave.
        """
        batch, heads, rows, dim = q_BHTD.shape
        groups, many = marks_BGND.shape[1:3]
        query, place = q_BHTD.float(), self._before() + self._place() - self.plan.block
        # turning the query back turns all keys of a slot forward
        score = attend.group_scores(self._turn(query, place), marks_BGND, "none")
        newest = min(self.widest, many)
        age = torch.arange(newest, device=self.at.device)
        held, k = self._held()[..., None], self.k[..., None]
        slot = torch.where(held > k, k - age, held - 1 - age).clamp(min=0)
        # blocks before the first have numbers from behind: those of blocks that this row does not see
        number_BTM = (self.cached[..., None] - 1 - age) % many
        by = (place[..., None] - slot * self.plan.length).flatten(1)
        turned = self._turn(query.repeat_interleave(newest, 2), by).view(batch, groups, -1, rows, newest, dim)
        index = number_BTM.flatten(1)[:, None, :, None].expand(-1, groups, -1, dim)
        mark = marks_BGND.gather(2, index).float().view(batch, groups, 1, rows, newest, dim)
        found = (turned * mark).sum(-1).view(batch, heads, rows, newest)
        return score.scatter_(3, number_BTM[:, None].expand_as(found), found) * self.call.scale

    def _together(self, score_BHTN: Tensor) -> Tensor:
        """Scores by which heads or rows choose alike; a landmark's row chooses for itself."""
        if self.plan.choose == "row_and_head":
            return score_BHTN
        share = score_BHTN.log_softmax(-1).masked_fill(score_BHTN == -torch.inf, -torch.inf)
        if self.plan.choose == "row":
            self.memory.site.need_every_head("landmark with choose: row takes the highest score")
            return share.amax(1, keepdim=True)
        return share if self.later else self._so_far(share)

    def _so_far(self, share_BHTN: Tensor) -> Tensor:
        """The highest of each row and those before it in its chunk, calls before this one among them."""
        chunk, before = (self.start // self.plan.chunk).masked_fill(self.at < 0, -1), self.memory.extra.get("best")
        out, rows = share_BHTN, share_BHTN.shape[2]
        if before is not None:
            wide = torch.nn.functional.pad(before, (0, out.shape[3] - before.shape[3]), value=-torch.inf)
            same = chunk == (self.at[:, :1] - 1) // self.plan.chunk  # as the row before these
            out = torch.where((same & (self.at >= 0))[:, None, :, None], out.maximum(wide), out)
        back = 1
        while back < min(rows, self.plan.chunk):  # each row knows the best of twice as many before it
            same = (chunk[:, back:] == chunk[:, :-back])[:, None, :, None]
            more = torch.where(same, out[:, :, back:].maximum(out[:, :, :-back]), out[:, :, back:])
            out, back = torch.cat([out[:, :, :back], more], 2), 2 * back
        self.memory.extra["best"] = out[:, :, -1:]
        return out

    def _near(self, q_BHTD: Tensor, marks_BGND: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the chunk so far, [B, H, T, D], and the log of its sum of weights."""
        place = torch.where(self.at < 0, -1, self.at + self.at // self.plan.block + self.later)
        rows, block = q_BHTD.shape[2], self.plan.block
        queries = (rows - 1) * self.plan.length + 1 if self.later else rows + -(-(rows - 1) // block)
        window = Window.of(place, self.plan.chunk, block, queries)
        query = self._turn(q_BHTD, self._place())
        return window.attend(query, place, self.memory, marks_BGND, self._begin(), self.call.scale)

    def _far(self, q_BHTD: Tensor, chosen: Tensor, slot: Tensor, marks_BGND: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the chosen blocks, [B, H, T, D], and the log of their landmarks' sum of weights."""
        if not chosen.shape[3]:
            return torch.zeros_like(q_BHTD), torch.full(q_BHTD.shape[:3], -torch.inf, device=q_BHTD.device)
        source = Source(self.memory.keys.view, self.memory.values.view, marks_BGND, chosen, self._begin())
        if self.memory.host is not None:
            source = fetched(self.memory, source, self.plan.block)
        keys, values, marks, index, begin = source
        query = self._before_slots(q_BHTD, chosen, slot)
        out, lse = LANDMARK_RETRIEVE(
            query, keys, values, marks, index.int(), begin.int(), self.plan.block, self.call.scale
        )
        return out, lse

    def _before_slots(self, q_BHTD: Tensor, chosen_BXTK: Tensor, slot_BXTK: Tensor) -> Tensor:
        """Queries [B, H, T, K, D] turned back by the slots, and on by as much as the chosen keys were turned."""
        batch, sets, rows, keep = chosen_BXTK.shape
        heads, dim = q_BHTD.shape[1], q_BHTD.shape[3]
        turned = chosen_BXTK % (self.plan.chunk // self.plan.block)
        by = (self._before() + self._place())[:, None, :, None] + (turned - slot_BXTK) * self.plan.length
        query = q_BHTD.repeat_interleave(keep, 2).view(batch, heads // sets, sets * rows * keep, dim)
        return self._turn(query, by.flatten(1)).view(batch, heads, rows, keep, dim)

    def _controlled(self, q_BHTD: Tensor, lse_BHT: Tensor) -> Tensor:
        """The control token, which stands at -1, weighs all blocks, and they weigh among themselves."""
        if self.plan.cutoff is None:
            return lse_BHT
        query = self._turn(q_BHTD.float(), self._before() + self._place() + 1)
        gate = attend.group_scores(query, self.memory.extra["control"].float(), "none")[..., 0] * self.call.scale
        return torch.where(lse_BHT == -torch.inf, lse_BHT, gate)

    def _read(self, chosen: Tensor) -> Tensor:
        """Rows read per key/value head: the chunk so far, and the blocks that any head of the group chose."""
        groups, (batch, sets, rows, keep) = self.memory.keys.view.shape[1], chosen.shape
        share = max(1, sets // groups)  # sets of a group
        each = chosen.view(batch, sets // share, share, rows, keep).transpose(2, 3).flatten(3).sort(-1).values
        new = torch.ones_like(each, dtype=torch.bool)
        new[..., 1:] = each[..., 1:] != each[..., :-1]
        blocks = (new & (each >= 0)).sum(-1).expand(-1, groups, -1)
        near = (self.at - self.start + 1)[:, None]
        return torch.where(self.at[:, None] < 0, 0, blocks * self.plan.block + near)
