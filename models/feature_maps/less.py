"""LESS: a small network for each head.

Shapes: B batch, G key/value heads, N rows, D head dimension, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu

from ..feature_map import Centre, Features, Trained, Weights, plain

HIDDEN = 512


@dataclass(frozen=True)
class Less(Trained):
    """|gelu(gelu(x A) B)| with 512 hidden units, A and B for queries and keys apart, times a learned scale: F features.

    Get More with LESS (arXiv 2402.09398), whose state is as large as some 4 rows of the cache. Its weights, read at
    every step, are not small (2 x 512 (D + F) a head), and are charged.

    `width`: F, 8 as in the paper.
    """

    def features(self, head_dim: int) -> int:
        """F."""
        del head_dim
        return self.width or 8

    def start(self, heads: int, head_dim: int, generators: list[torch.Generator]) -> dict[str, Tensor]:
        """Gaussian, so that what enters and leaves a layer is of one size."""
        sizes = ((head_dim, HIDDEN), (HIDDEN, self.features(head_dim)))
        drawn = {"scale": torch.zeros(heads, 1)}
        for side in ("query", "key"):
            for name, (high, wide) in zip(("inner", "outer"), sizes, strict=True):
                parts = [torch.randn(high, wide, generator=g) / math.sqrt(high) for g in generators]
                drawn[f"{side}.{name}"] = torch.stack(parts)
        return drawn

    def keys(self, k_BGND: Tensor, weights: Weights) -> Features:
        """The network of keys, and the scale."""
        found = plain(_network(k_BGND, weights, "key"))
        return Features(found.value, found.log + weights["scale"])

    def queries(self, q_BGND: Tensor, weights: Weights, centre: Centre | None) -> Features:
        """The network of queries."""
        del centre
        return plain(_network(q_BGND, weights, "query"))


def _network(x_BGND: Tensor, weights: Weights, side: str) -> Tensor:
    return gelu(gelu(x_BGND @ weights[f"{side}.inner"]) @ weights[f"{side}.outer"]).abs()
