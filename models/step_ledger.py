"""The ledger of steps whose places are fixed: the same counts, with few additions a step and none for each layer.

A layer only leaves what it counted; once a step all layers are added up together, on the device, so that a captured
step counts at every replay. What the host knows (row sizes, heads) is multiplied in at the end.

Shapes: B batch, G key/value heads, L layers, N sets of rows held.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .ledger import PHASES, Ledger
from .memory import Call, Memory
from .rows import Clock

DECODE = PHASES.index("decode")


@dataclass
class _Count:
    """What one layer left in this step: rows attended per head, bytes beside (a tensor, or the same for each row)."""

    memory: Memory
    attended_BG: Tensor
    extra: Tensor | float
    row_bytes: int


@dataclass
class StepLedger(Ledger):
    """Counts steps on a clock, on top of what was counted before.

    Attributes:
        before: the ledger of the prompt.
        clock: of the steps.
        common: [2] rows, and tokens that they saw, float64.
        layers: [3, L] rows attended, bytes read beside them, rows kept; of all real heads.
        most: [L] the most rows that a head attended in one step.
    """

    before: Ledger = field(default_factory=Ledger)
    clock: Clock | None = None
    common: Tensor | None = None
    layers: Tensor | None = None
    most: Tensor | None = None
    _now: dict[int, _Count] = field(default_factory=dict)

    def count(
        self,
        memory: Memory,
        call: Call,
        attended_BGT: Tensor,
        extra_bytes_BT: Tensor | float,
        row_bytes: int | None = None,
    ) -> None:
        """Note one layer's counts; `close` adds them up."""
        if call.clock is not self.clock:  # the steps are over
            self.before.count(memory, call, attended_BGT, extra_bytes_BT, row_bytes)
            return
        each = memory.keys.row_bytes + memory.values.row_bytes if row_bytes is None else row_bytes
        self._now[memory.site.layer] = _Count(memory, attended_BGT[:, : memory.live, 0], extra_bytes_BT, each)

    def settle(self, memory: Memory, call: Call, arrived_BN: Tensor | None = None) -> None:
        """In a step nothing is evicted that is not overwritten at once: `close` counts what is held."""
        if call.clock is not self.clock:
            self.before.settle(memory, call, arrived_BN)

    def close(self) -> None:
        """Add up a step; nothing is asked of the device."""
        assert self.clock is not None
        context_B = self.clock.context_BT[:, 0]
        real_B = (context_B > 0).double()
        counts = [self._now[layer] for layer in sorted(self._now)]
        attended_LB = torch.stack([c.attended_BG for c in counts]) * real_B[:, None]
        rows = torch.stack(
            [attended_LB.sum((1, 2)), self._beside_LB(counts, real_B).sum(1), self._kept_LB(counts, context_B).sum(1)]
        )
        common = torch.stack([real_B.sum(), context_B.clamp(min=0).sum().double()])
        most = attended_LB.amax((1, 2))
        if self.common is None or self.layers is None or self.most is None:
            self.common, self.layers, self.most = common, rows, most
        else:
            self.common += common
            self.layers += rows
            torch.maximum(self.most, most, out=self.most)

    @staticmethod
    def _beside_LB(counts: list[_Count], real_B: Tensor) -> Tensor:
        """Bytes beside the rows, where they differ from row to row."""
        parts = [c.extra[:, 0] * real_B if isinstance(c.extra, Tensor) else torch.zeros_like(real_B) for c in counts]
        return torch.stack(parts)

    @staticmethod
    def _kept_LB(counts: list[_Count], context_B: Tensor) -> Tensor:
        """Rows of text held after the step, all real heads together."""
        parts = []
        for memory in (c.memory for c in counts):
            if memory.columns is None:
                parts.append(context_B.clamp(min=0) * memory.live)
                continue
            rows_BN = memory.text_rows_BN(memory.first) if memory.first is not None else None
            assert rows_BN is not None
            parts.append(rows_BN.expand(-1, memory.keys.view.shape[1])[:, : memory.live].sum(-1) * (context_B > 0))
        return torch.stack(parts).double()

    def sums(self) -> Tensor:
        """As of any ledger: the prompt's counts and the steps' together."""
        table = self.before.sums()
        if self.common is None or self.layers is None:
            return table
        rows, context = self.common.tolist()
        table = torch.cat([table, table.new_zeros(1 + max(self._now) - len(table), 3, 6)]) if len(table) == 0 else table
        for layer, (attended, beside, kept) in zip(sorted(self._now), self.layers.T.tolist(), strict=True):
            now = self._now[layer]
            memory = now.memory
            live, copies = memory.site.live, memory.copies
            read = attended * now.row_bytes + beside + (0.0 if isinstance(now.extra, Tensor) else now.extra * rows)
            dense = live * context * memory.dense_row_bytes
            counts = [rows, live * context, attended / copies, kept / copies, read, dense]
            table[layer, DECODE] += torch.tensor(counts, dtype=torch.float64)
            held = torch.tensor([float(memory.held_bytes), float(memory.dense_bytes), live], dtype=torch.float64)
            table[layer, 2, :3] = table[layer, 2, :3].maximum(held)
        return table
