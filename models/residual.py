"""Exact rows beside a state of what was dropped: sinks, recent rows and heavy hitters stay, all else is summed up.

At most one row leaves with each query row. Which, is known beforehand where rows leave in order of age (a window); else
the walk over rows says so. The rest is the same: exact attention over rows that leave one after the other, linear
attention over them in the order in which they leave.

Shapes: B batch, H query heads, G key/value heads, N sets of rows (1 or G), T query rows, S rows held, D head dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from . import attend, lifetime, many, residual_steps
from .budget import Allowance, amount_of, share, widest, word_of
from .call import Call
from .evict import grouped, text
from .feature_map import FeatureMap
from .leaving import Leaving, course, course_until, dropped_of, left_of, until_of
from .ledger import Ledger
from .memory import Memory, Site
from .residual_state import Dropped, Share, State, marked, refuse_windows
from .stepwise import Stepwise, marked_row_bytes
from .walk import Marking, Walk, walk_at_once

SINK = 1e30  # a mark that no attention reaches
BY_AGE, ALL_SINKS = "by_age", "all_sinks"
UNBOUNDED = 2**40  # rows, more than any text has


class Residual(Stepwise):
    """A row attends the rows held, itself included, and the state of all that were dropped before it, in one softmax.

    Rows are kept and dropped as in H2O; the first rows of a text, its sinks, bear marks that no attention reaches. A
    subclass is a dataclass with the further fields `sinks` (a count) and `recent` (rows that are never dropped: a share
    of the budget, or a count).
    """

    sinks: int
    recent: float

    @property
    @abstractmethod
    def feature_map(self) -> FeatureMap:
        """The feature map of the state."""

    @property
    @abstractmethod
    def centred(self) -> bool:
        """Whether it expands around the mean of what was dropped."""

    def state(self, memory: Memory) -> State:
        """The state in a layer's memory."""
        return State(memory, self.feature_map, self.centred)

    def tables(self, site: Site) -> Mapping[str, Tensor]:
        """The map's weights, in fp32."""
        return marked(self.feature_map.weights(site))

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Append rows; sinks bear a mark, the first the highest. Once pinned, the new row takes another's place."""
        if memory.clock is not None:
            residual_steps.swap(memory, k_BGTD, v_BGTD)
            return
        if memory.given.get(ALL_SINKS, False):  # known on the CPU
            mark = torch.zeros_like(k_BGTD[..., :1], dtype=torch.float32)
        else:
            mark = self._sinks_of(memory, k_BGTD)
        memory.append(k_BGTD, v_BGTD, {"mark": mark})
        self.state(memory).begin(k_BGTD)

    def _sinks_of(self, memory: Memory, k_BGTD: Tensor) -> Tensor:
        """Marks of new rows, [B, G, T, 1]."""
        assert memory.first is not None
        numbers = memory.seen + torch.arange(k_BGTD.shape[2], device=k_BGTD.device)
        place = (numbers - memory.first[:, None])[:, None, :, None]
        is_sink = (place >= 0) & (place < self.sinks)
        mark = torch.where(is_sink, SINK / (place.clamp(min=0) + 1.0), 0.0).float()
        return mark.expand(-1, k_BGTD.shape[1], -1, -1)

    def settle(self, memory: Memory, call: Call) -> None:
        """Compress the prompt; note whether all texts have their sinks."""
        super().settle(memory, call)
        if call.phase == "prefill":
            there = bool((call.context_BT[:, -1] >= self.sinks).all())
            memory.given = {**memory.given, ALL_SINKS: torch.tensor(there)}

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """The budget; a row that leaves is read once more, for the state."""
        found = super().allowance(memory, call)
        return found if found.attended_BT is None else replace(found, attended_BT=found.attended_BT + 1)

    def mark(self, marks_BGS: Tensor, weights_BHTS: Tensor) -> Tensor:
        """Attention adds up."""
        return marks_BGS + grouped(weights_BHTS.sum(2, keepdim=True), marks_BGS.shape[1], "sum")[:, :, 0]

    def marking(self, heads: int, groups: int) -> Marking:
        """The same as factors."""
        del heads
        return Marking(groups, 1.0, 1.0)

    def protected(self, rows_B: Tensor) -> Tensor:
        """The recent rows, as far as the sinks leave room for them."""
        return share(self.recent, rows_B).minimum((rows_B - self.sinks).clamp(min=1))

    def checked(self, joined_BHTD: Tensor, exact_BHTD: Tensor) -> Tensor:
        """What a rule beside the softmax makes of attention joined with the state; default nothing."""
        del exact_BHTD
        return joined_BHTD

    def room(self, memory: Memory, steps: int) -> int:
        """None: a full cache takes one row for another."""
        rows = super().room(memory, steps)
        residual_steps.prepare(memory, self.state(memory).read_bytes(memory.keys.view.shape[0]))
        return rows

    @property
    def windowed(self) -> bool:
        """Whether no row is held for the attention that it got: all but sinks are recent."""
        return self.recent == 1 and not isinstance(self.recent, int)

    def by_age(self, memory: Memory, call: Call) -> bool:
        """Whether rows leave in order of age, sinks excepted, in this call and all that follow: no marks are needed."""
        if call.phase == "decode" and BY_AGE in memory.given:
            return bool(memory.given[BY_AGE])
        before = bool(memory.given.get(BY_AGE, True))  # a sink that was lost does not come back
        found = self.windowed and before and self._has_room(memory, call)
        memory.given = {**memory.given, BY_AGE: torch.tensor(found)}  # on the CPU: rows after a prompt ask no device
        return found

    def _has_room(self, memory: Memory, call: Call) -> bool:
        """Whether every budget, of this call and all that follow, holds a row beside the sinks."""
        word = word_of(self)
        if word == "bytes":
            return widest(self, memory.site, UNBOUNDED, self.cost(memory, call)) > self.sinks
        if word == "rows":
            return True  # else the arguments are refused
        grows = memory.prompt is None and call.phase == "decode"  # from less than the sinks
        return not grows and bool((self.rows_BT(memory, call) > self.sinks).all())

    def leaving(self, q_BHTD: Tensor, memory: Memory, call: Call) -> Leaving:
        """Which rows leave when; where they leave by age it is the same in all layers of one budget."""
        if not self.by_age(memory, call):
            return self._walked(q_BHTD, memory, call)
        key = (BY_AGE, amount_of(self, memory.site), *memory.keys.view.shape)
        if key not in call.shared:
            call.shared[key] = course(memory, call, self._in_order(memory, call))
        found: Leaving = call.shared[key]
        return found

    def _in_order(self, memory: Memory, call: Call) -> Tensor:
        """The oldest but sinks, as soon as there is one row too many; [B, N, T]."""
        is_text = text(memory, call)
        before, now = is_text[..., : -call.new], is_text[..., -call.new :]
        held = before.sum(-1, keepdim=True)
        most = self.rows_BT(memory, call)[:, None, -1:].maximum(held)
        gone = (held + now.cumsum(-1) - most).clamp(min=0)
        leaves = gone > torch.cat([torch.zeros_like(gone[..., :1]), gone[..., :-1]], -1)
        first = (~is_text).sum(-1, keepdim=True) + self.sinks
        return torch.where(leaves, first + gone - 1, -1)

    def _walked(self, q_BHTD: Tensor, memory: Memory, call: Call) -> Leaving:
        """By marks, row after row; marks are left."""
        if many.fits_hidden(q_BHTD, call):
            until = walk_at_once(self, q_BHTD, memory, call)
            return course_until(call, left_of(memory, call, until), until, self.most_rows(memory, call))
        walk, parts = Walk(self, memory, call), []
        before = torch.zeros_like(walk.held)
        for rows in attend.pieces(call):
            keep = walk.rows(q_BHTD, torch.arange(rows.start, rows.stop, device=q_BHTD.device))
            come = walk.numbers[:, :, None] <= call.numbers_T[rows, None]
            gone = walk.text[:, :, None] & come & ~keep
            new = gone & ~torch.cat([before[:, :, None], gone[:, :, :-1]], 2)
            parts.append(torch.where(new.any(-1), new.int().argmax(-1), -1))
            before = gone[:, :, -1]
        return course(memory, call, torch.cat(parts, 2))

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Dense; what an earlier prompt dropped is still heard from the state."""
        if memory.columns is None:  # nothing was dropped
            return super().attend_dense(q_BHTD, memory, call, ledger)
        refuse_windows(call)
        none = torch.full((*memory.keys.view.shape[:2], call.new), -1, device=q_BHTD.device)
        leave_BGS = until_of(memory, call, none)
        self._count(memory, call, ledger, lifetime.held_count(leave_BGS, call))
        self.mark_prompt(memory.aux["mark"].view[..., 0], q_BHTD, memory, call)
        exact = Share(*lifetime.attend_held(q_BHTD, memory, leave_BGS, call.scale))
        joined = self.state(memory).read(call.root_scaled(q_BHTD)).merge(exact)
        return self.checked(joined, exact.out).to(q_BHTD.dtype)

    def mark_prompt(self, marks_BGS: Tensor, q_BHTD: Tensor, memory: Memory, call: Call) -> None:
        """Sums of columns, through a kernel where there is one; none where nothing will read them."""
        if self.by_age(memory, call):
            return
        if many.fits(q_BHTD, memory, call):
            marks_BGS.add_(many.attention_received(q_BHTD, memory, call))
        else:
            super().mark_prompt(marks_BGS, q_BHTD, memory, call)

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Each row attends what has not left when it comes, and the state of what has."""
        if call.clock is not None:
            return self._step(q_BHTD, memory, call, ledger)
        refuse_windows(call)
        left_BGT, leaves_BGT, leave_BGS, read_BGT, stay_BGK = self.leaving(q_BHTD, memory, call)
        dropped = dropped_of(memory, call, left_BGT, leaves_BGT)
        self._count(memory, call, ledger, read_BGT)
        if ledger.watch is not None:
            row = torch.arange(call.new, device=q_BHTD.device)[:, None]
            keep = attend.visible_BNTS(memory, call) & (leave_BGS[:, :, None] > row)
            ledger.chosen(memory, call, q_BHTD, keep)
        if call.new == 1:
            memory.keep(stay_BGK, call.new)
            exact = residual_steps.attend_held(q_BHTD, memory, call)
            return self._joined(q_BHTD, memory, call, dropped, exact)
        exact = Share(*lifetime.attend_held(q_BHTD, memory, leave_BGS, call.scale))
        out = self.checked(self.state(memory).pass_by(call.root_scaled(q_BHTD), dropped, exact), exact.out)
        memory.keep(stay_BGK, call.new)
        return out

    def _step(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """A step of a full cache; which row leaves was found when the new one was written."""
        marks = memory.aux["mark"].view[..., 0]
        exact = residual_steps.attend_full(q_BHTD, memory, call, marks[..., :0] if self.windowed else marks)
        ledger.count(memory, call, memory.given["read"], memory.given["beside"])
        return self._joined(q_BHTD, memory, call, residual_steps.swapped(memory, call), exact)

    def _joined(self, q_BHTD: Tensor, memory: Memory, call: Call, dropped: Dropped, exact: Share) -> Tensor:
        """One row: what leaves is added to the state, and that joined with exact attention."""
        joined = self.state(memory).step(call.root_scaled(q_BHTD), dropped, exact)
        return self.checked(joined, exact.out).to(q_BHTD.dtype)

    def leave(self, memory: Memory, call: Call, gone_BNS: Tensor) -> None:
        """Add rows to the state."""
        index = attend.rows_of(gone_BNS.expand(-1, memory.keys.view.shape[1], -1))
        self.state(memory).absorb(dropped_of(memory, call, index.clamp(min=0), index >= 0))

    def _count(self, memory: Memory, call: Call, ledger: Ledger, read_BGT: Tensor) -> None:
        """Rows attended and the one folded; their marks, and the state with the map's weights."""
        beside = self.state(memory).read_bytes(read_BGT.shape[0])
        ledger.count(memory, call, read_BGT, beside, marked_row_bytes(memory))
