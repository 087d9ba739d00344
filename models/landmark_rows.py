"""Query rows of landmark attention at inference: which blocks they choose, and one softmax over what they read.

Shapes: B batch, H query heads, G key/value heads, T query rows, S rows held, W of them around these, N blocks, K chosen
ones, C tokens of a block, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from . import attend
from .landmark import logsumexp_by_block
from .landmark_host import Fetch, gathered
from .memory import Call, Memory

NO_BOUND = 2**31
# Rows attended at once, and elements of keys gathered for them: a GPU would wait for launches.
AT_ONCE = {"cpu": (attend.ROWS_AT_ONCE, 2**24), "cuda": (2048, 2**28)}


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


def pieces(q_BHTD: Tensor, k_BT: Tensor, block: int) -> Iterator[slice]:
    """Query rows that choose k blocks, so many at once that what is gathered for them stays small."""
    (batch, heads, new, dim), (rows, gathered) = q_BHTD.shape, AT_ONCE[q_BHTD.device.type]
    each = max(1, min(rows, gathered // (batch * heads * dim * max(1, _largest(k_BT) * block))))
    return (slice(start, min(start + each, new)) for start in range(0, new, each))


def _largest(k_BT: Tensor) -> int:
    return int(k_BT.max()) if k_BT.numel() else 0


class Found(NamedTuple):
    """Output [B, H, T, D], rows of the text that were read for it [B, G, T], and the blocks chosen [B, H, T, N]."""

    out: Tensor
    read_BGT: Tensor
    hit_BHTN: Tensor


@dataclass
class Rows:
    """Some query rows over a memory.

    Shapes: N blocks, K chosen ones, C tokens of a block, W rows of the text from the first chunk on.

    Attributes:
        at: [B, T] the last token of its text that a row sees; -1 for padding.
        later: [B, T] positions that the row stands behind that token: 1 for a landmark.
        k: [B, T] blocks that it may choose, the same for all rows of a chunk.
    """

    plan: Plan
    memory: Memory
    call: Call
    at: Tensor
    later: Tensor
    k: Tensor
    widest: int = field(init=False)
    start: Tensor = field(init=False)
    cached: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.widest = _largest(self.k)
        self.start = self.at.clamp(min=0) // self.plan.chunk * self.plan.chunk
        self.cached = self.start // self.plan.block  # blocks before the chunk

    def attend(self, q_BHTD: Tensor) -> Found:
        """One softmax over the rows of the chunk and of the chosen blocks."""
        chosen, slot = self._choose(q_BHTD)
        near, near_v = self._near(q_BHTD)
        logits, values = self._far(q_BHTD, chosen, slot)
        weight = torch.cat([near, self._controlled(q_BHTD, logits.flatten(3))], 3)
        nothing = (self.at < 0)[:, None, :, None]
        weight = weight.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
        width, groups = near.shape[3], near_v.shape[1]
        weight, chosen = self._cut_off(weight, width, chosen)
        here = weight[..., :width].to(near_v.dtype)
        shape = here.shape
        out = (here.reshape(shape[0], groups, -1, width) @ near_v).view(*shape[:3], -1)
        there = weight[..., width:].to(values.dtype)
        out = out + (there[..., None, :] @ values)[..., 0, :]
        hit = self._hit(chosen)
        return Found(out.to(q_BHTD.dtype), self._read(hit, groups), hit)

    def kept(self, hit_BHTN: Tensor) -> Tensor:
        """Which rows held are attended, [B, H, T, S]: the chunk so far, and those of the blocks chosen."""
        number_BS = self.memory.numbers_BS(self.at.shape[0]) - self.call.first[:, None]
        number = number_BS[:, None, None]
        start, at = self.start[:, None, :, None], self.at[:, None, :, None]
        some = torch.nn.functional.pad(hit_BHTN, (0, 1))  # what is in no block that is full is in the last column
        block = (number.clamp(min=0) // self.plan.block).clamp(max=hit_BHTN.shape[3])
        chosen = some.gather(3, block.expand(*hit_BHTN.shape[:3], -1))
        return torch.where((number >= start) & (number <= at), True, chosen & (number >= 0) & (number < start))

    def _place(self) -> Tensor:
        """Position of each row within its chunk, landmarks counted, [B, T]."""
        inside = self.at.clamp(min=0) - self.start
        return inside + inside // self.plan.block + self.later

    def _turned(self, x_BHTD: Tensor, by_BT: Tensor) -> Tensor:
        return self.memory.site.rotate(x_BHTD.float(), by_BT)

    def _choose(self, q_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks [B, H, T, K], oldest first, -1 for none; and the slots that they are put into."""
        marks = self.memory.extra["landmarks"]
        many, k = marks.shape[2], self.k[:, None, :, None]
        keep = min(self.widest, many)
        if not keep:
            nothing = self.at[:, None, :, None].expand(-1, q_BHTD.shape[1], -1, 0)
            return nothing, nothing
        number = torch.arange(many, device=self.at.device)
        age = self.cached[..., None] - 1 - number  # 0: the newest
        is_there = (age >= 0) & (age < self.plan.most)
        score = self._landmark_scores(q_BHTD, marks.float(), age)
        score = self._together(score.masked_fill(~is_there[:, None], -torch.inf))
        score = score.half()  # landmarks are all alike in the first layer: rounding must not choose between equals
        best = score.sort(dim=-1, descending=True, stable=True).indices[..., :keep]
        beyond = torch.arange(keep, device=best.device) >= k
        best = best.masked_fill((score.gather(-1, best) == -torch.inf) | beyond, many).sort(-1).values
        best = best.expand(-1, q_BHTD.shape[1], -1, -1)
        held = is_there.sum(-1)[:, None, :, None]
        recent = (self.cached[:, None, :, None] - best) <= k
        slot = torch.arange(keep, device=best.device) + (recent & (held > k)).long()
        return torch.where(best == many, -1, best), slot

    def _landmark_scores(self, q_BHTD: Tensor, marks_BGND: Tensor, age_BTN: Tensor) -> Tensor:
        """Scores [B, H, T, N] of the landmarks at the slots that their blocks' ages give them."""
        k, length = self.k[..., None], self.plan.block + 1
        held = age_BTN.ge(0).sum(-1, keepdim=True).clamp(max=self.plan.most)
        slot_BTN = torch.where(held > k, (k - age_BTN).clamp(min=0), held - 1 - age_BTN)
        before = self._before()
        score = q_BHTD.new_zeros(*q_BHTD.shape[:3], age_BTN.shape[-1], dtype=torch.float32)
        for slot in range(min(self.widest, marks_BGND.shape[2]) + 1):
            # turning the query back turns all keys of a slot forward
            query = self._turned(q_BHTD, before + self._place() - slot * length - self.plan.block)
            found = attend.group_scores(query, marks_BGND, "none") * self.call.scale
            score = torch.where((slot_BTN == slot)[:, None], found, score)
        return score

    def _before(self) -> Tensor:
        """Positions that stand before the chunk: all blocks while they are few, then k + 1 slots; [B, T]."""
        held = self.cached.clamp(max=self.plan.most)
        return held.minimum(self.k + 1) * (self.plan.block + 1)

    def _together(self, score_BHTN: Tensor) -> Tensor:
        """Scores by which heads or rows choose alike; a landmark's row chooses for itself."""
        if self.plan.choose == "row_and_head":
            return score_BHTN
        share = score_BHTN.log_softmax(-1).masked_fill(score_BHTN == -torch.inf, -torch.inf)
        if self.plan.choose == "row":
            self.memory.site.need_every_head("landmark with choose: row takes the highest score")
            return share.amax(1, keepdim=True)
        return share if bool(self.later.any()) else self._so_far(share)

    def _so_far(self, share_BHTN: Tensor) -> Tensor:
        """The highest of each row and those before it in its chunk, calls before this one among them."""
        chunk, kept = self.start // self.plan.chunk, self.memory.extra
        before = kept.get("best")
        out = share_BHTN.clone()
        for number in chunk[self.at >= 0].unique().tolist():
            mine = ((chunk == number) & (self.at >= 0))[:, None, :, None]
            seen = share_BHTN.masked_fill(~mine, -torch.inf).cummax(2).values
            out = torch.where(mine, seen, out)
        if before is not None:
            wide = torch.full_like(out[:, :, :1], -torch.inf)
            wide[..., : before.shape[-1]] = before
            same = (chunk == (self.at[:, :1] - 1) // self.plan.chunk)[:, None, :, None]  # as the row before these
            out = torch.where(same, out.maximum(wide), out)
        kept["best"] = out[:, :, -1:]
        return out

    def _near(self, q_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, H, T, W] of the chunk's rows, a closed block's lifted by its landmark, and values [B, G, W, D]."""
        memory, call = self.memory, self.call
        number_BS = memory.numbers_BS(self.at.shape[0])
        seen = self._span(number_BS)
        number_BW = number_BS[:, seen] - call.first[:, None]  # of each row within its text
        inside = number_BW % self.plan.chunk
        keys = self._turned(memory.keys.view[:, :, seen], inside + inside // self.plan.block)
        query = self._turned(q_BHTD, self._place())
        score = attend.group_scores(query, keys, "none") * call.scale
        chunk = (number_BW[:, None] >= self.start[..., None]) & (number_BW[:, None] <= self.at[..., None])
        own = number_BW[:, None] // self.plan.block == self.at.clamp(min=0)[..., None] // self.plan.block
        past = (chunk & ~own)[:, None]
        of_block = number_BW.clamp(min=0) // self.plan.block
        first = of_block[:, :1]
        local = logsumexp_by_block(score, past, of_block - first)
        marks = memory.extra["landmarks"]
        gate = self._gates(query, marks, inside, of_block)
        index = (of_block - first)[:, None, None].expand_as(score)
        lifted = score + gate - local.gather(3, index)
        logit = torch.where((chunk & own)[:, None], score, torch.where(past, lifted, -torch.inf))
        return logit, memory.values.view[:, :, seen]

    def _span(self, number_BS: Tensor) -> slice:
        """The rows held among which those of these query rows' chunks are."""
        real = self.at >= 0
        if not bool(real.any()):
            return slice(0, 1)
        number = number_BS[0]
        low = (self.start + self.call.first[:, None])[real].min() - number[0]
        high = (self.at + self.call.first[:, None])[real].max() - number[0]
        return slice(max(0, int(low)), int(high) + 1)

    def _gates(self, query: Tensor, marks: Tensor, inside_BW: Tensor, of_block_BW: Tensor) -> Tensor:
        """Scores of the landmarks of the rows' blocks, [B, H, T, W]; anything where there is none."""
        if not marks.shape[2]:
            return torch.zeros((), device=query.device)
        index = of_block_BW.clamp(max=marks.shape[2] - 1)
        place = inside_BW // self.plan.block * (self.plan.block + 1) + self.plan.block
        keys = marks.gather(2, index[:, None, :, None].expand(-1, marks.shape[1], -1, marks.shape[3]))
        return attend.group_scores(query, self._turned(keys, place), "none") * self.call.scale

    def _far(self, q_BHTD: Tensor, chosen: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, H, T, K, C] of the chosen blocks' rows, and their values [B, H, T, K * C, D]."""
        batch, heads, rows, _ = q_BHTD.shape
        memory, block, scale = self.memory, self.plan.block, self.call.scale
        inner = torch.arange(block, device=chosen.device)
        number = chosen[..., None] * block + inner + self.call.first[:, None, None, None, None]
        index = (number - memory.numbers_BS(batch)[:, 0, None, None, None, None]).flatten(3)
        here = index.clamp(min=0)
        keys, values = self._at_block(here, heads), gathered(memory.values.view, here, heads)
        if memory.host is not None:
            begins = self.call.first - memory.numbers_BS(batch)[:, 0]
            fetch = Fetch(memory.host, block, chosen, index, begins)
            keys, values = fetch.into(keys, values, self._turned)
        query = self._before_slots(q_BHTD, slot)[..., None]
        keys = keys.view(batch, heads, rows, -1, block, query.shape[-2])
        score = (keys @ query)[..., 0] * scale
        marks = self._turned(memory.extra["landmarks"], torch.full_like(self.at[:, :1], block))
        marks = gathered(marks, chosen.clamp(min=0), heads) if chosen.shape[-1] else query[..., 0]
        gate = (marks[..., None, :] @ query)[..., 0, 0] * scale
        logit = score + (gate - score.logsumexp(-1))[..., None]
        return logit.masked_fill((chosen < 0)[..., None], -torch.inf), values

    def _controlled(self, q_BHTD: Tensor, logits_BHTW: Tensor) -> Tensor:
        """Logits by which the control token, which stands at -1, weighs all blocks, and they weigh among themselves."""
        if self.plan.cutoff is None or not logits_BHTW.shape[3]:
            return logits_BHTW
        query = self._turned(q_BHTD, self._before() + self._place() + 1)
        gate = attend.group_scores(query, self.memory.extra["control"].float(), "none") * self.call.scale
        return logits_BHTW.log_softmax(-1).masked_fill(logits_BHTW == -torch.inf, -torch.inf) + gate

    def _cut_off(self, weight_BHTW: Tensor, width: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Without the blocks of rows that give the control token too little; what is left is not scaled up."""
        if not self.plan.cutoff:
            return weight_BHTW, chosen
        few = weight_BHTW[..., width:].sum(-1, keepdim=True) < self.plan.cutoff
        there = weight_BHTW[..., width:].masked_fill(few, 0.0)
        return torch.cat([weight_BHTW[..., :width], there], 3), chosen.masked_fill(few, -1)

    def _before_slots(self, q_BHTD: Tensor, slot_BHTK: Tensor) -> Tensor:
        """Queries [B, H, T, K, D] turned back by the slots: few queries in place of all the keys that are in a slot."""
        place, length = self._before() + self._place(), self.plan.block + 1
        slots = range(slot_BHTK.shape[3] + 1)
        turned = torch.stack([self._turned(q_BHTD, place - slot * length) for slot in slots], 3)
        return turned.gather(3, slot_BHTK[..., None].expand(*slot_BHTK.shape, q_BHTD.shape[3]))

    def _at_block(self, index_BHTK: Tensor, heads: int) -> Tensor:
        """Keys at these rows [B, H, T, K, D], turned by their place within their block."""
        keys, block = self.memory.keys.view, self.plan.block
        place = (self.memory.numbers_BS(keys.shape[0]) - self.call.first[:, None]) % block
        if index_BHTK[0].numel() > keys[0, :, :, 0].numel():  # rows that are gathered often are turned once
            return gathered(self._turned(keys, place), index_BHTK, heads)
        there = place.gather(1, index_BHTK.flatten(1))
        keys = gathered(keys, index_BHTK, heads)
        return self._turned(keys.flatten(1, 3)[:, None], there).view(keys.shape)

    def _hit(self, chosen: Tensor) -> Tensor:
        """The chosen blocks as booleans over all, [B, H, T, N]."""
        many = self.memory.extra["landmarks"].shape[2]
        hit = torch.zeros(*chosen.shape[:3], many + 1, dtype=torch.bool, device=chosen.device)
        return hit.scatter(3, torch.where(chosen < 0, many, chosen), value=True)[..., :many]

    def _read(self, hit_BHTN: Tensor, groups: int) -> Tensor:
        """Rows read per key/value head: the chunk so far, and the blocks that any head of the group chose."""
        blocks = attend.union_BGT(hit_BHTN, groups) * self.plan.block
        return torch.where(self.at[:, None] < 0, 0, blocks + (self.at - self.start + 1)[:, None])
