"""Hedgehog: learned exponentials of both signs.

Shapes: B batch, G key/value heads, N rows, D head dimension, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..feature_map import Centre, Features, Trained, Weights, exponentials


@dataclass(frozen=True)
class Hedgehog(Trained):
    """[exp(A x + b), exp(-A x - b)], A and b for queries and keys apart, times a learned scale: 2 W features.

    The Hedgehog and the Porcupine (arXiv 2402.04347). Its released code divides each half by its sum, a softmax, which
    is harmless where all attention is linear; beside exact rows the scale must stay, and is learned here, as the hybrid
    of LoLCATs (arXiv 2410.10254) learns a factor. Starts from A = identity, b = 0.

    `width`: W, default the head dimension.
    """

    def features(self, head_dim: int) -> int:
        """2 W."""
        return 2 * (self.width or head_dim)

    def start(self, heads: int, head_dim: int, generators: list[torch.Generator]) -> dict[str, Tensor]:
        """The identity; nothing is drawn."""
        del generators
        wide = self.width or head_dim
        eye, zeros = torch.eye(head_dim, wide).repeat(heads, 1, 1), torch.zeros(heads, 1, wide)
        scale = torch.zeros(heads, 1)
        named = {"query.matrix": eye, "query.shift": zeros, "key.matrix": eye, "key.shift": zeros, "scale": scale}
        return {name: part.clone() for name, part in named.items()}

    def keys(self, k_BGND: Tensor, weights: Weights) -> Features:
        """Both signs, and the scale."""
        found = _both(k_BGND @ weights["key.matrix"] + weights["key.shift"])
        return Features(found.value, found.log + weights["scale"])

    def queries(self, q_BGND: Tensor, weights: Weights, centre: Centre | None) -> Features:
        """Both signs."""
        del centre
        return _both(q_BGND @ weights["query.matrix"] + weights["query.shift"])


def _both(x_BGNW: Tensor) -> Features:
    return exponentials(torch.cat([x_BGNW, -x_BGNW], -1))
