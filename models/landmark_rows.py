"""Query rows of landmark attention at inference: which blocks they choose, and one softmax over what they read.

Keys are held turned by their place in their chunk, landmarks' keys as they came.

Shapes: B batch, H query heads, X of them or 1 that choose apart, G key/value heads, Q query rows at consecutive places,
N blocks, K chosen ones, M of the newest blocks, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.landmark_retrieve import OP as LANDMARK_RETRIEVE
from ..kernels.select_topk import OP as SELECT_TOPK
from . import attend
from .call import Call
from .landmark_host import Source, fetched
from .landmark_places import Places, Plan
from .memory import Memory
from .rotation import Turning

# Rows attended at once, and elements of scores or queries made for them: a GPU would wait for launches.
AT_ONCE = {"cpu": (attend.ROWS_AT_ONCE, 2**24), "cuda": (2**14, 2**27)}


class Found(NamedTuple):
    """Output [B, H, Q, D], rows of the text that were read for it [B, G, Q], and the chosen blocks [B, X, Q, K]."""

    out: Tensor
    read_BGQ: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class Chances:
    """What some query rows may choose, the same in every layer that allows as much.

    Attributes:
        k_BQ: blocks that a row may choose, the same for all rows of a chunk.
        widest: the largest k.
        many: N.
        rotate: turns rows by positions.
    """

    places: Places
    k_BQ: Tensor
    widest: int
    many: int
    rotate: Turning

    def pieces(self, heads: int, dim: int) -> list[tuple[slice, Chances]]:
        """The rows, so many at once that what is made for them is small; by how many heads and dims they have."""
        (batch, new), (rows, made) = self.k_BQ.shape, AT_ONCE[self.k_BQ.device.type]
        each = max(1, min(rows, made // (batch * heads * max(self.many, dim * min(self.widest, self.many), dim))))
        slices = [slice(start, min(start + each, new)) for start in range(0, new, each)]
        return [(part, replace(self, places=self.places[part], k_BQ=self.k_BQ[:, part])) for part in slices]

    @cached_property
    def before(self) -> Tensor:
        """Positions that stand before the chunk: all blocks while they are few, then k + 1 slots; [B, Q]."""
        return self.places.held.minimum(self.k_BQ + 1) * self.places.plan.length

    @cached_property
    def position(self) -> Tensor:
        """Of each row, [B, Q]."""
        return self.before + self.places.inside

    @cached_property
    def is_there(self) -> Tensor:
        """[B, Q, N] which blocks a row may choose."""
        number, cached = torch.arange(self.many, device=self.k_BQ.device), self.places.cached[..., None]
        return (number < cached) & (number >= cached - self.places.held[..., None])

    @cached_property
    def to_chunk(self) -> Callable[[Tensor], Tensor]:
        """Turns queries to their place in the chunk."""
        return self.rotate.by(self.places.inside)

    @cached_property
    def marks_to_chunk(self) -> Callable[[Tensor], Tensor]:
        """Turns the landmarks' keys to their places in their chunks, as the keys of their blocks are."""
        plan = self.places.plan
        number = torch.arange(self.many, device=self.k_BQ.device) % plan.blocks
        return self.rotate.by((number * plan.length + plan.block)[None])

    @cached_property
    def to_first_slot(self) -> Callable[[Tensor], Tensor]:
        """Turns queries back by the place of slot 0's landmark, which turns all keys in that slot forward."""
        return self.rotate.by(self.position - self.places.plan.block)

    @cached_property
    def newest(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Numbers of the M newest blocks, [B, Q, M], and what turns queries [B, n, Q M, D] back to their landmarks."""
        age = torch.arange(min(self.widest, self.many), device=self.k_BQ.device)
        held, k, plan = self.places.held[..., None], self.k_BQ[..., None], self.places.plan
        slot = torch.where(held > k, k - age, held - 1 - age).clamp(min=0)
        # blocks before the first have numbers from behind: those of blocks that this row does not see
        number_BQM = (self.places.cached[..., None] - 1 - age) % self.many
        by = (self.position - plan.block)[..., None] - slot * plan.length
        return number_BQM, self.rotate.by(by.flatten(1))


@dataclass(frozen=True)
class Stretch:
    """The rows of a call: T of its text, and behind them those of landmarks.

    Attributes:
        text_BT: places of the text's rows; negative for padding.
        place_BL: places of all rows; negative for none.
        marks_BT: landmarks whose keys a row of the text reads; float64.
        chances: of all places.
        pieces: which of these are attended at once.
    """

    text_BT: Tensor
    place_BL: Tensor
    marks_BT: Tensor
    chances: Chances
    pieces: list[tuple[slice, Chances]]

    def of_text(self, x_BnQX: Tensor) -> Tensor:
        """The text's rows, [B, n, T, X]."""
        return self.chances.places.back(x_BnQX, self.text_BT)


@dataclass(frozen=True)
class Rows:
    """Some query rows over a memory."""

    chances: Chances
    memory: Memory
    call: Call

    @property
    def places(self) -> Places:
        """Where the rows stand."""
        return self.chances.places

    @property
    def plan(self) -> Plan:
        """The method's arguments."""
        return self.places.plan

    def attend(self, q_BHQD: Tensor) -> Found:
        """One softmax over the rows of the chunk and of the chosen blocks."""
        marks = self.memory.extra["landmarks"]
        chosen, slot = self._choose(q_BHQD, marks)
        marks = self.chances.marks_to_chunk(marks)
        out, lse = self.places.near(self.chances.to_chunk(q_BHQD), self.memory, marks, self.call.scale)
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
        hit = hit.scatter(3, torch.where(chosen < 0, many, chosen).long(), value=True)
        hit[..., many] = False  # what is in no block that is full
        start, at = self.places.start[:, None, :, None], self.places.at[:, None, :, None]
        block = (number.clamp(min=0) // self.plan.block).clamp(max=many)
        old = hit.gather(3, block.expand(*hit.shape[:3], -1)) & (number >= 0) & (number < start)
        return old | ((number >= start) & (number <= at))

    def _choose(self, q_BHQD: Tensor, marks_BGND: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks [B, X, Q, K], oldest first, -1 for none; and the slots that they are put into."""
        batch, heads, rows, _ = q_BHQD.shape
        many = marks_BGND.shape[2]
        keep = min(self.chances.widest, many)
        if not keep:
            nothing = self.chances.k_BQ.new_zeros(batch, heads, rows, 0)
            return nothing, nothing
        held, cached, k = (part[:, None, :, None] for part in (self.places.held, self.places.cached, self.chances.k_BQ))
        score = self._landmark_scores(q_BHQD, marks_BGND)
        score = score.masked_fill_(~self.chances.is_there[:, None], -torch.inf)
        # landmarks are all alike in the first layer: rounding must not choose between equals
        score = self._together(score).half().float()
        k_each = k[..., 0].expand(-1, score.shape[1], -1).reshape(-1).int()
        best, _ = SELECT_TOPK(score.reshape(-1, 1, many), k_each, keep)
        best = best.view(batch, -1, rows, keep)
        recent = (cached - best <= k) & (held > k)
        return best, torch.arange(keep, device=k.device) + recent.long()

    def _landmark_scores(self, q_BHQD: Tensor, marks_BGND: Tensor) -> Tensor:
        """Scores [B, H, Q, N] of the landmarks at the slots that their blocks' ages give them; float32.

        All but the newest M blocks share slot 0. Those are of another place for the rows of each chunk: their scores,
        each with the query turned to its slot, replace what slot 0 gave.
        """
        batch, heads, rows, dim = q_BHQD.shape
        groups, query = marks_BGND.shape[1], q_BHQD.float() * self.call.scale
        score = attend.group_scores(self.chances.to_first_slot(query), marks_BGND, "none")
        number_BQM, turn = self.chances.newest
        newest = number_BQM.shape[2]
        turned = turn(query.repeat_interleave(newest, 2)).view(batch, groups, -1, rows, newest, dim)
        index = number_BQM.flatten(1)[:, None, :, None].expand(-1, groups, -1, dim)
        mark = marks_BGND.gather(2, index).float().view(batch, groups, 1, rows, newest, dim)
        found = (turned * mark).sum(-1).view(batch, heads, rows, newest)
        return score.scatter_(3, number_BQM[:, None].expand_as(found), found)

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
        source = Source(self.memory.keys.view, self.memory.values.view, marks_BGND, chosen, self.places.begin_B)
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
        by = self.chances.position[:, None, :, None] + (turned - slot_BXQK) * self.plan.length
        query = q_BHQD.repeat_interleave(keep, 2).view(batch, heads // sets, sets * rows * keep, dim)
        return self.memory.site.rotate(query, by.flatten(1)).view(batch, heads, rows, keep, dim)

    def _controlled(self, q_BHQD: Tensor, lse_BHQ: Tensor) -> Tensor:
        """The control token, which stands at -1, weighs all blocks, and they weigh among themselves."""
        if self.plan.cutoff is None:
            return lse_BHQ
        query = self.memory.site.rotate(q_BHQD.float(), self.chances.position + 1)
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
