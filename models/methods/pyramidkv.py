"""PyramidKV: SnapKV with more rows in lower layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount, Within
from ..budget import Allowance, in_rows, word_of
from ..call import Call
from ..evict import Observed
from ..memory import Memory


@dataclass(frozen=True)
class PyramidKv(Observed):
    """SnapKV whose budget falls linearly from the lowest layer to the highest.

    PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling (arXiv 2406.02069). Beside the
    window, the top layer keeps base / beta rows and the bottom layer 2 base - base / beta, where base = rows - window;
    what is kept within a layer, read in decode and charged is as in SnapKV.

    Arguments: `keep` a share of the prompt, `rows` of a head, or `bytes` of a layer, all in the *mean over layers*, the
    window included. `budget_rule: exact` rounds the paper's line so that all layers together hold layers * rows, no row
    more, and no layer more than there is (then the line is flatter, with the same sum). `budget_rule: released` is the
    integer rule of the authors' code and of KVCache-Factory: a floored step between layers, which spends up to 27% more
    than it says, so that only its own rule can be its allowance; prompts shorter than 2 (rows - window) get the whole
    budget in each layer. `heads: query` is their layout, charged for all its copies.
    """

    keep: Keep = None
    rows: RowCount = 2048
    bytes: ByteCount = None
    beta: Annotated[int, Within(1)] = 20
    window: Annotated[int, Within(1)] = 8
    kernel: Annotated[int, Within(1)] = 7
    pooling: Literal["max", "avg"] = "max"
    group: Literal["mean", "max", "sum"] = "mean"
    heads: Literal["kv", "query"] = "kv"
    budget_rule: Literal["exact", "released"] = "exact"
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        rules.observed(self)
        rules.one_budget_for_all_layers(self)

    def budget_B(self, memory: Memory, call: Call) -> Tensor:
        """This layer's part of the pyramid."""
        length = call.context_BT[:, -1]
        rule = self._exact if self.budget_rule == "exact" else self._released
        mean = in_rows(self, memory.site, length, self.cost(memory, call))
        return rule(mean, length, memory.site.layer, memory.site.layers)

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """The sum over layers is that of equal layers; of the released rule each layer's own."""
        if self.budget_rule == "released":
            return replace(super().allowance(memory, call), held_bytes=None)
        if word_of(self) == "bytes":
            return replace(super().allowance(memory, call), over_layers=True)
        if memory.prompt is None:
            return Allowance()
        equal = in_rows(self, memory.site, memory.prompt, self.cost(memory, call))
        rows = (equal - memory.prompt)[:, None] + call.context_BT
        return Allowance(rows if call.phase == "decode" else None, rows[:, -1], over_layers=True)

    def _exact(self, k_B: Tensor, length_B: Tensor, layer: int, layers: int) -> Tensor:
        """Whole numbers whose running sum is the line's, rounded down: nothing is lost or gained over the layers."""
        window = k_B.clamp(max=self.window)
        base = k_B - window
        # times beta, so that everything stays a whole number
        bottom = (base * (2 * self.beta - 1)).minimum((length_B - window) * self.beta)
        top = 2 * base * self.beta - bottom
        gaps = max(1, layers - 1)

        def below(count: int) -> Tensor:
            rows = 2 * gaps * count * bottom - (bottom - top) * count * (count - 1)
            return rows.div(2 * gaps * self.beta, rounding_mode="floor")

        return window + (below(layer + 1) - below(layer) if layers > 1 else base)

    def _released(self, k_B: Tensor, length_B: Tensor, layer: int, layers: int) -> Tensor:
        """Three cases: all that there is, k in each layer, or steps of a whole number of rows."""
        base = k_B - k_B.clamp(max=self.window)
        least = base // self.beta
        most = 2 * base - least
        room = length_B - (k_B - base)
        least = torch.where(most >= room, 2 * base - room, least)
        most = most.minimum(room)
        step = (most - least) // max(1, layers - 1)
        short = length_B < 2 * base
        return torch.where(short, k_B, k_B - base + most - layer * step)
