"""Query rows of landmark attention at inference: which blocks they choose, and one softmax over what they read.

Keys are held turned by their place in their chunk, landmarks' keys as they came.

Shapes: B batch, H query heads, X of them or 1 that choose apart, G key/value heads, Q query rows at consecutive places,
N blocks, K chosen ones, M of the newest blocks, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.landmark_retrieve import OP as LANDMARK_RETRIEVE
from ..kernels.select_topk import OP as SELECT_TOPK
from . import attend
from .landmark_host import Source, fetched
from .landmark_places import Places, Plan
from .memory import Call, Memory

# Rows attended at once, and elements of scores or queries made for them: a GPU would wait for launches.
AT_ONCE = {"cpu": (attend.ROWS_AT_ONCE, 2**24), "cuda": (2**14, 2**27)}


def pieces(q_BHQD: Tensor, widest: int, blocks: int) -> Iterator[slice]:
    """Query rows that choose up to `widest` of so many blocks, so many at once that what is made for them is small."""
    (batch, heads, new, dim), (rows, made) = q_BHQD.shape, AT_ONCE[q_BHQD.device.type]
    each = max(1, min(rows, made // (batch * heads * max(blocks, dim * min(widest, blocks), dim))))
    return (slice(start, min(start + each, new)) for start in range(0, new, each))


class Found(NamedTuple):
    """Output [B, H, Q, D], rows of the text that were read for it [B, G, Q], and the chosen blocks [B, X, Q, K]."""

    out: Tensor
    read_BGQ: Tensor
    chosen: Tensor


@dataclass
class Rows:
    """Some query rows over a memory.

    Attributes:
        k_BQ: blocks that a row may choose, the same for all rows of a chunk.
        widest: the largest k.
    """

    places: Places
    memory: Memory
    call: Call
    k_BQ: Tensor
    widest: int

    @property
    def plan(self) -> Plan:
        """The method's arguments."""
        return self.places.plan

    def attend(self, q_BHQD: Tensor) -> Found:
        """One softmax over the rows of the chunk and of the chosen blocks."""
        marks = self.memory.extra["landmarks"]
        chosen, slot = self._choose(q_BHQD, marks)
        marks = self._turned_marks(marks)
        near = self._turn(q_BHQD, self.places.inside)
        out, lse = self.places.near(near, self.memory, marks, self._begin(), self.call.scale)
        far, far_lse = self._far(q_BHQD, chosen, slot, marks)
        far_lse = self._controlled(q_BHQD, far_lse)
        share = torch.where(far_lse == -torch.inf, 0.0, torch.sigmoid(far_lse - lse))[..., None]
        kept = share
        if self.plan.cutoff:  # without the blocks of rows that give the control token too little
            few = share < self.plan.cutoff
            kept, chosen = share.masked_fill(few, 0.0), chosen.masked_fill(few, -1)
        out = out.float() * (1 - share) + far.float() * kept  # what a cut-off leaves is not scaled up
        return Found(out.to(q_BHQD.dtype), self._read(chosen), chosen)

    def kept(self, chosen: Tensor) -> Tensor:
        """Which tokens so far are attended, [B, X, Q, seen]: the chunk so far, and those of the blocks chosen."""
        number = torch.arange(int(self.call.seen), device=chosen.device) - self.call.first[:, None]
        number, many = number[:, None, None], self.memory.extra["landmarks"].shape[2]
        hit = torch.zeros(*chosen.shape[:3], many + 1, dtype=torch.bool, device=chosen.device)
        hit = hit.scatter(3, torch.where(chosen < 0, many, chosen), value=True)
        hit[..., many] = False  # what is in no block that is full
        start, at = self.places.start[:, None, :, None], self.places.at[:, None, :, None]
        block = (number.clamp(min=0) // self.plan.block).clamp(max=many)
        old = hit.gather(3, block.expand(*hit.shape[:3], -1)) & (number >= 0) & (number < start)
        return old | ((number >= start) & (number <= at))

    def _before(self) -> Tensor:
        """Positions that stand before the chunk: all blocks while they are few, then k + 1 slots; [B, Q]."""
        return self.places.held.minimum(self.k_BQ + 1) * self.plan.length

    def _turn(self, x_BnQD: Tensor, by_BQ: Tensor) -> Tensor:
        return self.memory.site.rotate(x_BnQD, by_BQ)

    def _begin(self) -> Tensor:
        """Row held at which each text's first token lies; negative where it is held no more; [B]."""
        return self.call.first - self.memory.numbers_BS(self.k_BQ.shape[0])[:, 0]

    def _turned_marks(self, marks_BGND: Tensor) -> Tensor:
        """The landmarks' keys, turned by their place in their chunk as the keys of their blocks are."""
        number = torch.arange(marks_BGND.shape[2], device=marks_BGND.device) % self.plan.blocks
        return self._turn(marks_BGND, (number * self.plan.length + self.plan.block)[None])

    def _choose(self, q_BHQD: Tensor, marks_BGND: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks [B, X, Q, K], oldest first, -1 for none; and the slots that they are put into."""
        batch, heads, rows, _ = q_BHQD.shape
        many = marks_BGND.shape[2]
        keep = min(self.widest, many)
        if not keep:
            nothing = self.k_BQ.new_zeros(batch, heads, rows, 0)
            return nothing, nothing
        held, cached, k = (part[:, None, :, None] for part in (self.places.held, self.places.cached, self.k_BQ))
        number = torch.arange(many, device=k.device)
        is_there = (number < cached) & (number >= cached - held)
        score = self._landmark_scores(q_BHQD, marks_BGND).masked_fill(~is_there, -torch.inf)
        # landmarks are all alike in the first layer: rounding must not choose between equals
        score = self._together(score).half().float()
        k_each = k[..., 0].expand(-1, score.shape[1], -1).reshape(-1).int()
        best, _ = SELECT_TOPK(score.reshape(-1, 1, many), k_each, keep)
        best = best.view(batch, -1, rows, keep).long()
        recent = (cached - best <= k) & (held > k)
        return best, torch.arange(keep, device=k.device) + recent.long()

    def _landmark_scores(self, q_BHQD: Tensor, marks_BGND: Tensor) -> Tensor:
        """Scores [B, H, Q, N] of the landmarks at the slots that their blocks' ages give them; float32.

        All but the newest M blocks share slot 0. Those are of another place for the rows of each chunk: their scores,
        each with the query turned to its slot, replace what slot 0 gave.
        """
        batch, heads, rows, dim = q_BHQD.shape
        groups, many = marks_BGND.shape[1:3]
        query, place = q_BHQD.float(), self._before() + self.places.inside - self.plan.block
        # turning the query back turns all keys of a slot forward
        score = attend.group_scores(self._turn(query, place), marks_BGND, "none")
        newest = min(self.widest, many)
        age = torch.arange(newest, device=place.device)
        held, k = self.places.held[..., None], self.k_BQ[..., None]
        slot = torch.where(held > k, k - age, held - 1 - age).clamp(min=0)
        # blocks before the first have numbers from behind: those of blocks that this row does not see
        number_BQM = (self.places.cached[..., None] - 1 - age) % many
        by = (place[..., None] - slot * self.plan.length).flatten(1)
        turned = self._turn(query.repeat_interleave(newest, 2), by).view(batch, groups, -1, rows, newest, dim)
        index = number_BQM.flatten(1)[:, None, :, None].expand(-1, groups, -1, dim)
        mark = marks_BGND.gather(2, index).float().view(batch, groups, 1, rows, newest, dim)
        found = (turned * mark).sum(-1).view(batch, heads, rows, newest)
        return score.scatter_(3, number_BQM[:, None].expand_as(found), found) * self.call.scale

    def _together(self, score_BHQN: Tensor) -> Tensor:
        """Scores by which heads or rows choose alike; a landmark's row chooses for itself."""
        if self.plan.choose == "row_and_head":
            return score_BHQN
        share = score_BHQN.log_softmax(-1).masked_fill(score_BHQN == -torch.inf, -torch.inf)
        if self.plan.choose == "row":
            self.memory.site.need_every_head("landmark with choose: row takes the highest score")
            return share.amax(1, keepdim=True)
        is_mark = self.places.is_mark[:, None, :, None]
        return torch.where(is_mark, share, self._so_far(share.masked_fill(is_mark, -torch.inf)))

    def _so_far(self, share_BHQN: Tensor) -> Tensor:
        """The highest of each row and those before it in its chunk, calls before this one among them."""
        places, before, out = self.places.place_BQ, self.memory.extra.get("best"), share_BHQN
        chunk = torch.where(self.places.none, -1, places // self.plan.long)
        if before is not None:
            before = torch.nn.functional.pad(before, (0, out.shape[3] - before.shape[3]), value=-torch.inf)
            first = places.masked_fill(self.places.none, torch.iinfo(places.dtype).max).amin(1, keepdim=True)
            same = (chunk == (first - 1) // self.plan.long) & ~self.places.none  # as the row before these
            out = torch.where(same[:, None, :, None], out.maximum(before), out)
        back = 1
        while back < min(out.shape[2], self.plan.long):  # each row knows the best of twice as many before it
            same = (chunk[:, back:] == chunk[:, :-back])[:, None, :, None]
            more = torch.where(same, out[:, :, back:].maximum(out[:, :, :-back]), out[:, :, back:])
            out, back = torch.cat([out[:, :, :back], more], 2), 2 * back
        last = out[:, :, -1:]
        if before is not None:  # a text may have no row here
            last = torch.where(self.places.none[:, None, -1:, None], before, last)
        self.memory.extra["best"] = last
        return out

    def _far(self, q_BHQD: Tensor, chosen: Tensor, slot: Tensor, marks_BGND: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the chosen blocks, [B, H, Q, D], and the log of their landmarks' sum of weights."""
        if not chosen.shape[3]:
            return torch.zeros_like(q_BHQD), torch.full(q_BHQD.shape[:3], -torch.inf, device=q_BHQD.device)
        source = Source(self.memory.keys.view, self.memory.values.view, marks_BGND, chosen, self._begin())
        if self.memory.host is not None:
            source = fetched(self.memory, source, self.plan.block)
        keys, values, marks, index, begin = source
        query = self._before_slots(q_BHQD, chosen, slot)
        out, lse = LANDMARK_RETRIEVE(
            query, keys, values, marks, index.int(), begin.int(), self.plan.block, self.call.scale
        )
        return out, lse

    def _before_slots(self, q_BHQD: Tensor, chosen_BXQK: Tensor, slot_BXQK: Tensor) -> Tensor:
        """Queries [B, H, Q, K, D] turned back by the slots, and on by as much as the chosen keys were turned."""
        batch, sets, rows, keep = chosen_BXQK.shape
        heads, dim = q_BHQD.shape[1], q_BHQD.shape[3]
        turned = chosen_BXQK % self.plan.blocks
        by = (self._before() + self.places.inside)[:, None, :, None] + (turned - slot_BXQK) * self.plan.length
        query = q_BHQD.repeat_interleave(keep, 2).view(batch, heads // sets, sets * rows * keep, dim)
        return self._turn(query, by.flatten(1)).view(batch, heads, rows, keep, dim)

    def _controlled(self, q_BHQD: Tensor, lse_BHQ: Tensor) -> Tensor:
        """The control token, which stands at -1, weighs all blocks, and they weigh among themselves."""
        if self.plan.cutoff is None:
            return lse_BHQ
        query = self._turn(q_BHQD.float(), self._before() + self.places.inside + 1)
        gate = attend.group_scores(query, self.memory.extra["control"].float(), "none")[..., 0] * self.call.scale
        return torch.where(lse_BHQ == -torch.inf, lse_BHQ, gate)

    def _read(self, chosen: Tensor) -> Tensor:
        """Rows read per key/value head: the chunk so far, and the blocks that any head of the group chose."""
        groups, (batch, sets, rows, keep) = self.memory.keys.view.shape[1], chosen.shape
        share = max(1, sets // groups)  # sets of a group
        each = chosen.view(batch, sets // share, share, rows, keep).transpose(2, 3).flatten(3).sort(-1).values
        new = torch.ones_like(each, dtype=torch.bool)
        new[..., 1:] = each[..., 1:] != each[..., :-1]
        blocks = (new & (each >= 0)).sum(-1).expand(-1, groups, -1)
        near = (self.places.at - self.places.start + 1)[:, None]
        return torch.where(self.places.none[:, None], 0, blocks * self.plan.block + near)
