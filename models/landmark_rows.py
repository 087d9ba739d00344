"""Query rows of landmark attention at inference: which blocks they choose, and one softmax over what they read.

Keys are held turned by their place in their chunk, landmarks' keys as they came.

Shapes: B batch, H query heads, X of them or 1 that choose apart, G key/value heads, Q query rows at consecutive places,
N blocks, K chosen ones, M of the newest blocks, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.landmark_retrieve import OP as LANDMARK_RETRIEVE
from ..kernels.select_topk import OP as SELECT_TOPK
from . import attend
from .call import Call
from .landmark_chances import Chances
from .landmark_host import Source, fetched
from .landmark_places import Places, Plan
from .memory import Memory


class Found(NamedTuple):
    """Output [B, H, Q, D], rows of the text that were read for it [B, G, Q], and the chosen blocks [B, X, Q, K]."""

    out: Tensor
    read_BGQ: Tensor
    chosen: Tensor


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
        marks = self.chances.turned(marks, self.chances.marks_to_chunk)
        query = self.chances.turned(q_BHQD, self.chances.to_chunk)
        out, lse = self.places.near(query, self.memory, marks, self.call.scale)
        far, far_lse = self._far(q_BHQD, chosen, slot, marks)
        far_lse = self._controlled(q_BHQD, far_lse)
        # two parts that are nothing both, as of a row that is none, leave nothing to the far one
        share = torch.sigmoid(far_lse - lse.clamp(min=torch.finfo(lse.dtype).min))[..., None]
        if self.plan.cutoff:  # without the blocks of rows that give the control token too little
            few = share < self.plan.cutoff
            far, chosen = far.masked_fill(few, 0.0), chosen.masked_fill(few, -1)  # what is left is not scaled up
        out = torch.lerp(out.float(), far.float(), share.float())
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
        (batch, heads, rows, _), chances = q_BHQD.shape, self.chances
        if not chances.keep:
            nothing = chances.k_BQ.new_zeros(batch, heads, rows, 0)
            return nothing, nothing
        score = self._landmark_scores(q_BHQD, marks_BGND).masked_fill_(chances.is_hidden, -torch.inf)
        # landmarks are all alike in the first layer: rounding must not choose between equals
        score = self._together(score).half().float()
        k_each = chances.k_BQ[:, None].expand(-1, score.shape[1], -1).reshape(-1)
        best, _ = SELECT_TOPK(score.reshape(-1, 1, chances.many), k_each, chances.keep)
        best = best.view(batch, -1, rows, chances.keep)
        return best, chances.slot_K + (best >= chances.recent_from)

    def _landmark_scores(self, q_BHQD: Tensor, marks_BGND: Tensor) -> Tensor:
        """Scores [B, H, Q, N] of the landmarks at the slots that their blocks' ages give them; float32.

        All but the newest M blocks share slot 0. Those are of another place for the rows of each chunk: their scores,
        each with the query turned to its slot, replace what slot 0 gave.
        """
        batch, heads, rows, dim = q_BHQD.shape
        groups, query, marks = marks_BGND.shape[1], q_BHQD.float() * self.call.scale, marks_BGND.float()
        score = attend.group_scores(self.chances.turned(query, self.chances.to_first_slot), marks, "none")
        number_BQM, by_B1QM = self.chances.newest
        newest = number_BQM.shape[2]
        turned = self.chances.turns(query, by_B1QM).view(batch, groups, -1, rows, newest, dim)
        index = number_BQM.flatten(1)[:, None, :, None].expand(-1, groups, -1, dim)
        mark = marks.gather(2, index).view(batch, groups, 1, rows, newest, dim)
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
        source = Source(self.memory.keys.view, self.memory.values.view, marks_BGND, chosen, self.places.begin)
        if self.memory.host is not None:
            source = fetched(self.memory, source, self.plan.block)
        keys, values, marks, index, begin = source
        query = self._before_slots(q_BHQD, chosen, slot)
        out, lse = LANDMARK_RETRIEVE(query, keys, values, marks, index.int(), begin, self.plan.block, self.call.scale)
        return out, lse

    def _before_slots(self, q_BHQD: Tensor, chosen_BXQK: Tensor, slot_BXQK: Tensor) -> Tensor:
        """Queries [B, H, Q, K, D] turned back by the slots, and on by as much as the chosen keys were turned."""
        later = chosen_BXQK % self.plan.blocks - slot_BXQK
        by = torch.add(self.chances.to_query[:, None, :, None], later, alpha=self.plan.length)
        return self.chances.turns(q_BHQD, by)

    def _controlled(self, q_BHQD: Tensor, lse_BHQ: Tensor) -> Tensor:
        """The control token, which stands at -1, weighs all blocks, and they weigh among themselves."""
        if self.plan.cutoff is None:
            return lse_BHQ
        query = self.chances.turned(q_BHQD.float(), self.chances.to_query + 1)
        gate = attend.group_scores(query, self.memory.extra["control"].float(), "none")[..., 0] * self.call.scale
        return torch.where(lse_BHQ == -torch.inf, lse_BHQ, gate)

    def _read(self, chosen: Tensor) -> Tensor:
        """Rows read per key/value head: the chunk so far, and the blocks that any head of the group chose."""
        groups, (batch, sets, rows, keep) = self.memory.keys.view.shape[1], chosen.shape
        share = max(1, sets // groups)  # sets of a group
        if not keep:
            return self.chances.near_rows.expand(-1, groups, -1)
        each = chosen.view(batch, sets // share, share, rows, keep).transpose(2, 3).flatten(3).sort(-1).values
        blocks = (each[..., 1:] > each[..., :-1]).sum(-1) + (each[..., 0] >= 0)  # -1 stands before all blocks
        return torch.add(self.chances.near_rows, blocks.expand(-1, groups, -1), alpha=self.plan.block)
