"""What attention really read and held, counted where it happens.

Counts are per key/value head: rows that several query heads of a group share are read once, rows that differ are all
read. Where query heads hold copies of a head, its rows are their mean, bytes are those of all copies. Padding heads
and padding rows are left out. Sums stay on the device; `summary` is the only synchronisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .audit import WHAT, Allowing, Audit
from .call import Call
from .memory import Memory

PHASES = ("prefill", "decode")


Kept = Callable[[Memory, Call, Tensor, Tensor], Tensor]


def grown(_: Memory, call: Call, before_BN: Tensor, after_BN: Tensor) -> Tensor:
    """Rows of text held after each new row, [B, N, T]: one more each time, and never more than are left in the end."""
    return (before_BN[..., None] + call.extent.arrived_BT[:, None]).minimum(after_BN[..., None])


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
    """One per binding; a method adds to it through `count`, and says through `chosen` which of many rows it chose."""

    tallies: dict[tuple[int, str], Tally] = field(default_factory=dict)
    held: dict[int, Tensor] = field(default_factory=dict)
    watch: Callable[[Memory, Call, Tensor, Tensor], None] | None = None
    audit: Audit = field(default_factory=Audit)

    def chosen(self, memory: Memory, call: Call, q_BHTD: Tensor, keep_BNTS: Tensor) -> None:
        """Tell an analysis, where one watches, which rows held each query row chose; the query as the keys are."""
        if self.watch is not None:
            self.watch(memory, call, q_BHTD, keep_BNTS)

    def count(
        self,
        memory: Memory,
        call: Call,
        attended_BGT: Tensor,
        extra_bytes_BT: Tensor | float,
        row_bytes: int | None = None,
    ) -> None:
        """Add one call.

        Args:
            memory: the layer's memory, after the append.
            call: the call.
            attended_BGT: rows whose value (and key) was read, per head of this rank.
            extra_bytes_BT: bytes read beside those rows for each query row (scores, bases), all real heads together.
            row_bytes: bytes read of an attended row; default its key and its value.
        """
        live, extent = memory.site.live, call.extent
        assert attended_BGT.shape[1] == memory.keys.view.shape[1]
        tally = self._tally(memory, call)
        each = memory.keys.row_bytes + memory.values.row_bytes if row_bytes is None else row_bytes
        attended_BT = attended_BGT[:, : memory.live].double().sum(1) * extent.real_BT
        read_BT = attended_BT * each + extent.real_BT * extra_bytes_BT
        self.audit.read(attended_BT, read_BT)
        tally.rows += extent.rows
        tally.visible += live * extent.visible
        tally.attended += attended_BT.sum() / memory.copies
        tally.read += read_BT.sum()
        tally.dense += (live * memory.dense_row_bytes) * extent.visible

    def count_parts(self, memory: Memory, call: Call, parts_BGX: Tensor, extra_bytes_BT: Tensor | float) -> None:
        """Add one call of a single query row, whose rows are counted in parts of the cache."""
        self.count(memory, call, parts_BGX.sum(-1, keepdim=True), extra_bytes_BT)

    def settle(self, memory: Memory, call: Call, arrived_BN: Tensor | None = None, kept: Kept | None = None) -> None:
        """Note what is held after eviction; `arrived` rows of text were held before it (default: as many).

        `kept` says of several rows how many are held after each, had it been a step (default: `grown`).
        """
        extent, after = call.extent, memory.text_rows_BN(call.first)
        before = (after if arrived_BN is None else arrived_BN) - extent.arrived_BT[:, -1:]
        each = grown if kept is None or call.new == 1 else kept
        heads = (each(memory, call, before, after) * extent.text_BT[:, None]).expand(-1, memory.keys.view.shape[1], -1)[
            :, : memory.live
        ]
        self._tally(memory, call).kept += heads.sum() / memory.copies
        held = memory.held_bytes
        zero = torch.zeros_like(held)
        self.audit.left(after, held)
        new = torch.stack([held, zero + memory.dense_bytes, zero + memory.site.live])
        self.held[memory.site.layer] = new.maximum(self.held.get(memory.site.layer, new))

    def hold(self, memory: Memory, call: Call, allowing: Allowing, *, acted: bool) -> None:
        """Hold the call that was counted and settled against its budget."""
        self.audit.hold(memory, call, allowing, acted=acted)

    def _tally(self, memory: Memory, call: Call) -> Tally:
        place = (memory.site.layer, call.phase)
        if place not in self.tallies:
            self.tallies[place] = Tally.empty(call.first.device)
        return self.tallies[place]

    def sums(self) -> Tensor:
        """[layers, 3, 6] on the CPU: prefill, decode, (bytes held, dense bytes, heads, three excesses over budgets)."""
        layers = 1 + max((place[0] for place in self.tallies), default=-1)
        table = torch.zeros(layers, 3, 6, dtype=torch.float64)
        for (layer, phase), tally in self.tallies.items():
            table[layer, PHASES.index(phase)] = tally.vector().cpu()
        for layer, held in self.held.items():
            table[layer, 2, :3] = held.cpu()
            table[layer, 2, 3:] = self.audit.row(layer)
        return table


def summary(tables: Sequence[Tensor]) -> dict[str, Any]:
    """Join the sums of all ranks into what a Record holds.

    Args:
        tables: `Ledger.sums()` of each rank.

    Returns:
        {"prefill", "decode": {tokens, density, rows_*_mean (of one key/value head of one layer), bytes_*_per_token (all
        heads and layers)}, "bytes_held", "bytes_held_dense", "over_budget": {rows_attended, rows_held, bytes: the most
        that any call of any layer used beyond its budget}, "layers": [the decode phase of each layer]}; a phase that
        never ran has tokens 0 and no density.
    """
    total = torch.stack(list(tables)).sum(0)
    total[:, :2, 0] = tables[0][:, :2, 0]  # every rank sees the same rows, only its own heads
    phases = {p: _phase(total, i) for i, p in enumerate(PHASES)}
    held = {"bytes_held": int(total[:, 2, 0].sum()), "bytes_held_dense": int(total[:, 2, 1].sum())}
    most = torch.stack(list(tables))[:, :, 2, 3:].amax((0, 1)).tolist() if len(total) else [0.0] * len(WHAT)
    return {
        **phases,
        **held,
        "over_budget": dict(zip(WHAT, most, strict=True)),
        "layers": [_phase(total[i : i + 1], 1) for i in range(len(total))],
    }


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
