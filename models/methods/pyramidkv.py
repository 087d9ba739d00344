"""PyramidKV: SnapKV with more rows in lower layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...results.fields import Share, Within
from ..evict import Observed
from ..memory import Call, Memory
from ..method import share


@dataclass(frozen=True)
class PyramidKv(Observed):
    """SnapKV whose budget falls linearly from the lowest layer to the highest.

    PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling (arXiv 2406.02069). Beside the
    window, the top layer keeps base / beta rows and the bottom layer 2 base - base / beta, where base = k - window;
    what is kept within a layer, read in decode and charged is as in SnapKV.

    Arguments: `k` rows of a head in the *mean over layers*, the window included: a share of the prompt, or a count.
    `budget_rule: exact` rounds the paper's line so that all layers together hold layers * k rows, no row more, and no
    layer more than there is (then the line is flatter, with the same sum). `budget_rule: released` is the integer
    rule of the authors' code and of KVCache-Factory: a floored step between layers, which spends up to 27% more than
    k; prompts shorter than 2 (k - window) get k rows in each layer. `heads: query` is their layout, charged for all
    its copies.
    """

    k: Annotated[int | float, Share("the prompt")] = 2048
    beta: Annotated[int, Within(1)] = 20
    window: Annotated[int, Within(1)] = 8
    kernel: Annotated[int, Within(1)] = 7
    pooling: Literal["max", "avg"] = "max"
    group: Literal["mean", "max", "sum"] = "mean"
    heads: Literal["kv", "query"] = "kv"
    budget_rule: Literal["exact", "released"] = "exact"
    version: ClassVar[int] = 1
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def rows(self, memory: Memory, call: Call) -> Tensor:
        """This layer's part of the pyramid."""
        length = call.context_BT[:, -1]
        rule = self._exact if self.budget_rule == "exact" else self._released
        return rule(share(self.k, length), length, memory.site.layer, memory.site.layers)

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
