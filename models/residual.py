"""Exact rows beside a state of what was dropped: sinks, recent rows and heavy hitters stay, all else is summed up.

Shapes: B batch, H query heads, G key/value heads, N sets of rows (1 or G), T query rows, S rows held, K rows dropped, D
head dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from . import attend
from .budget import Allowance, share
from .evict import Stepwise, Walk, grouped, text
from .feature_map import FeatureMap
from .ledger import Ledger
from .memory import Call, Memory, Site
from .residual_state import Dropped, Exact, Share, State, marked, refuse_windows

SINK = 1e30  # a mark that no attention reaches


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
        """Append rows; sinks bear a mark, the first the highest."""
        assert memory.first is not None
        numbers = memory.seen + torch.arange(k_BGTD.shape[2], device=k_BGTD.device)
        place = (numbers - memory.first[:, None])[:, None, :, None]
        is_sink = (place >= 0) & (place < self.sinks)
        mark = torch.where(is_sink, SINK / (place.clamp(min=0) + 1.0), 0.0).float()
        memory.append(k_BGTD, v_BGTD, {"mark": mark.expand(-1, k_BGTD.shape[1], -1, -1)})
        self.state(memory).begin(k_BGTD)

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """The budget; a row that leaves is read once more, for the state."""
        found = super().allowance(memory, call)
        return found if found.attended_BT is None else replace(found, attended_BT=found.attended_BT + 1)

    def mark(self, marks_BGS: Tensor, weights_BHTS: Tensor) -> Tensor:
        """Attention adds up."""
        return marks_BGS + grouped(weights_BHTS.sum(2, keepdim=True), marks_BGS.shape[1], "sum")[:, :, 0]

    def protected(self, rows_B: Tensor) -> Tensor:
        """The recent rows, as far as the sinks leave room for them."""
        return share(self.recent, rows_B).minimum((rows_B - self.sinks).clamp(min=1))

    def merge(self, found: Share, exact: Exact) -> Tensor:
        """The state's share and that of the rows attended exactly, in one softmax."""
        return found.merge(exact)

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Dense; what an earlier prompt dropped is still heard from the state."""
        if memory.columns is None:  # nothing was dropped
            return super().attend_dense(q_BHTD, memory, call, ledger)
        refuse_windows(call)
        visible = attend.visible_BNTS(memory, call).expand(-1, memory.keys.view.shape[1], -1, -1)
        marks, nothing = memory.aux["mark"].view[..., 0], torch.zeros_like(visible[:, :, 0])
        self._count(memory, call, ledger, visible.sum(-1))
        parts = []
        for rows in attend.pieces(call):
            out, weights = self._attend(q_BHTD, memory, call, rows, visible[:, :, rows], nothing)
            marks.copy_(self.mark(marks, weights))
            parts.append(out)
        return torch.cat(parts, 2)

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Walk the rows; each attends what the walk has left it, and the state of what it has dropped."""
        refuse_windows(call)
        walk, parts, read, kept = Walk(self, memory, call), [], [], []
        before = torch.zeros_like(walk.held)
        for rows in attend.pieces(call):
            keep = walk.rows(q_BHTD, torch.arange(rows.start, rows.stop, device=q_BHTD.device))
            parts.append(self._attend(q_BHTD, memory, call, rows, keep, before)[0])
            kept.append(keep)
            gone = walk.text & (walk.numbers <= call.numbers_T[rows.stop - 1]) & ~keep[:, :, -1]
            read.append(keep.sum(-1) + self._folded(memory, call, rows, keep, before))
            self.leave(memory, call, gone & ~before)
            before = gone
        ledger.chosen(memory, call, q_BHTD, torch.cat(kept, 2))
        self._count(memory, call, ledger, torch.cat(read, 2))
        memory.keep(attend.rows_of(walk.held))
        return torch.cat(parts, 2)

    def leave(self, memory: Memory, call: Call, gone_BNS: Tensor) -> None:
        """Add rows to the state."""
        gone = gone_BNS.expand(-1, memory.keys.view.shape[1], -1)
        dropped = _dropped(memory, call, attend.rows_of(gone), gone[:, :, None])
        self.state(memory).absorb(dropped.keys, dropped.values, dropped.last_BGK)

    def _attend(
        self, q_BHTD: Tensor, memory: Memory, call: Call, rows: slice, keep_BGTS: Tensor, before_BGS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Output of some query rows [B, H, T, D], and their weights [B, H, T, S] among the rows held."""
        q = q_BHTD[:, :, rows]
        exact = Exact.over(q, memory, call, keep_BGTS)
        meanwhile = self._meanwhile(memory, call, rows, keep_BGTS, before_BGS)
        merged = self.merge(self.state(memory).read(q.float() * call.scale**0.5, meanwhile), exact)
        is_padding = call.context_BT[:, None, rows, None] == 0
        return merged.masked_fill(is_padding, 0.0).to(q.dtype), exact.weights

    def _meanwhile(self, memory: Memory, call: Call, rows: slice, keep_BGTS: Tensor, before_BGS: Tensor) -> Dropped:
        """Rows that left since the state was written, up to the last of these query rows."""
        gone = self._gone(memory, call, rows, keep_BGTS) & ~before_BGS[:, :, None]
        found = _dropped(memory, call, attend.rows_of(gone[:, :, -1]), gone)
        self.state(memory).settle_anchor(found.keys, found.last_BGK)
        return found

    @staticmethod
    def _gone(memory: Memory, call: Call, rows: slice, keep_BGTS: Tensor) -> Tensor:
        """Which rows each query row no longer has, [B, G, T, S]."""
        numbers = memory.numbers_BNS(call.first.shape[0])[:, :, None]
        return text(memory, call)[:, :, None] & (numbers <= call.numbers_T[rows, None]) & ~keep_BGTS

    def _folded(self, memory: Memory, call: Call, rows: slice, keep_BGTS: Tensor, before_BGS: Tensor) -> Tensor:
        """How many rows each query row folds into the state, [B, G, T]: to be read once more, for the last time."""
        gone = self._gone(memory, call, rows, keep_BGTS)
        was = torch.cat([before_BGS[:, :, None], gone[:, :, :-1]], 2)
        return (gone & ~was).sum(-1)

    def _count(self, memory: Memory, call: Call, ledger: Ledger, read_BGT: Tensor) -> None:
        """Rows attended and the one folded; their marks, and the state with the map's weights."""
        marks = read_BGT[:, : memory.live].sum(1).double() * memory.aux["mark"].row_bytes
        ledger.count(memory, call, read_BGT, marks + self.state(memory).read_bytes(read_BGT.shape[0]))


def _dropped(memory: Memory, call: Call, index_BGK: Tensor, gone_BGTS: Tensor) -> Dropped:
    """Rows of these indices (holes -1), and whether each query row has lost them."""
    at = index_BGK.clamp(min=0)
    keys, values = (
        part.view.gather(2, at[..., None].expand(-1, -1, -1, part.view.shape[3])).float()
        for part in (memory.keys, memory.values)
    )
    gone = gone_BGTS.gather(3, at[:, :, None].expand(-1, -1, gone_BGTS.shape[2], -1))
    return Dropped(keys * call.scale**0.5, values, gone & (index_BGK >= 0)[:, :, None])
