"""What attention really read and held, counted where it happens.

Counts are per key/value head: rows that several query heads of a group share are read once, rows that differ are all
read. Padding heads and padding rows are left out. Sums stay on the device; `summary` is the only synchronisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .memory import Call, Memory

PHASES = ("prefill", "decode")


@dataclass
class Tally:
    """Sums of one layer and phase over rows and real heads."""

    rows: Tensor
    visible: Tensor
    attended: Tensor
    kept: Tensor
    read: Tensor
    dense: Tensor

    @classmethod
    def empty(cls, device: torch.device) -> Tally:
        """All zero."""
        return cls(*(torch.zeros((), dtype=torch.float64, device=device) for _ in range(6)))

    def vector(self) -> Tensor:
        """The six sums in the order of the fields."""
        return torch.stack([self.rows, self.visible, self.attended, self.kept, self.read, self.dense])


@dataclass
class Ledger:
    """One per binding; a method adds to it through `count`."""

    tallies: dict[tuple[int, str], Tally] = field(default_factory=dict)
    held: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def count(self, memory: Memory, call: Call, attended_BGT: Tensor, extra_bytes_BT: Tensor | float) -> None:
        """Add one call.

        Args:
            memory: the layer's memory, after the append.
            call: the call.
            attended_BGT: rows whose key and value were read, per head of this rank.
            extra_bytes_BT: bytes read beside those rows for each query row (scores, bases), all real heads together.
        """
        live, real = memory.site.live, call.context_BT > 0
        tally = self._tally(memory, call)
        context = call.context_BT.double()
        row_bytes = memory.keys.row_bytes + memory.values.row_bytes
        attended = (attended_BGT[:, :live].double().sum(1) * real).sum()
        extra = (extra_bytes_BT * real).sum() if isinstance(extra_bytes_BT, Tensor) else extra_bytes_BT * real.sum()
        tally.rows += real.sum()
        tally.visible += live * context.sum()
        tally.attended += attended
        tally.read += attended * row_bytes + extra
        tally.dense += live * context.sum() * row_bytes

    def settle(self, memory: Memory, call: Call) -> None:
        """Note what is held once the call is over (after eviction)."""
        tally = self._tally(memory, call)
        context = call.context_BT.double()
        tally.kept += memory.site.live * context.clamp(max=memory.keys.view.shape[2]).sum()
        old = self.held.get(memory.site.layer, (0, 0, 0))
        new = (max(old[0], memory.held_bytes), max(old[1], memory.dense_bytes), memory.site.live)
        self.held[memory.site.layer] = new

    def _tally(self, memory: Memory, call: Call) -> Tally:
        place = (memory.site.layer, call.phase)
        if place not in self.tallies:
            self.tallies[place] = Tally.empty(call.first.device)
        return self.tallies[place]

    def sums(self) -> Tensor:
        """[layers, 3, 6] on the CPU, to be added up over ranks: prefill, decode, (bytes held, dense bytes, heads)."""
        layers = 1 + max((place[0] for place in self.tallies), default=-1)
        table = torch.zeros(layers, 3, 6, dtype=torch.float64)
        for (layer, phase), tally in self.tallies.items():
            table[layer, PHASES.index(phase)] = tally.vector().cpu()
        for layer, held in self.held.items():
            table[layer, 2, :3] = torch.tensor(held, dtype=torch.float64)
        return table


def summary(tables: Sequence[Tensor]) -> dict[str, Any]:
    """Join the sums of all ranks into what a Record holds.

    Args:
        tables: `Ledger.sums()` of each rank.

    Returns:
        {"prefill", "decode": {tokens, density, rows_*_mean (of one key/value head of one layer), bytes_*_per_token (all
        heads and layers)}, "bytes_held", "bytes_held_dense", "layers": [the decode phase of each layer]}; a phase that
        never ran has tokens 0 and no density.
    """
    total = torch.stack(list(tables)).sum(0)
    total[:, :2, 0] = tables[0][:, :2, 0]  # every rank sees the same rows, only its own heads
    phases = {p: _phase(total, i) for i, p in enumerate(PHASES)}
    held = {"bytes_held": int(total[:, 2, 0].sum()), "bytes_held_dense": int(total[:, 2, 1].sum())}
    return {**phases, **held, "layers": [_phase(total[i : i + 1], 1) for i in range(len(total))]}


def _phase(total: Tensor, phase: int) -> dict[str, float]:
    rows, visible, attended, kept, read, dense = total[:, phase].sum(0).tolist()
    if not rows:
        return {"tokens": 0}
    tokens, heads = rows / len(total), float((total[:, phase, 0] * total[:, 2, 2]).sum())
    means = {"rows_visible_mean": visible, "rows_attended_mean": attended, "rows_kept_mean": kept}
    bytes_ = {"bytes_read_per_token": read / tokens, "bytes_dense_per_token": dense / tokens}
    return {
        "tokens": round(tokens),
        "density": attended / visible,
        **{k: v / heads for k, v in means.items()},
        **bytes_,
    }
