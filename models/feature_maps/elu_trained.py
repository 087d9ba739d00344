"""elu + 1 of learned projections.

Shapes: B batch, G key/value heads, N rows, D head dimension, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import elu

from ..feature_map import Centre, Features, Trained, Weights, plain


@dataclass(frozen=True)
class EluTrained(Trained):
    """elu(A x + b) + 1, A and b for queries and keys apart, times a learned scale: W features.

    The map of NTK-Attention (arXiv 2406.14036), fine-tuned on a cache: it starts as elu, so the state of what was
    dropped starts as their plain sums, and what writes it is learned.

    `width`: W, default the head dimension.
    """

    def features(self, head_dim: int) -> int:
        """W."""
        return self.width or head_dim

    def start(self, heads: int, head_dim: int, generators: list[torch.Generator]) -> dict[str, Tensor]:
        """The identity; nothing is drawn."""
        del generators
        wide = self.width or head_dim
        eye, zeros = torch.eye(head_dim, wide).repeat(heads, 1, 1), torch.zeros(heads, 1, wide)
        scale = torch.zeros(heads, 1)
        named = {"query.matrix": eye, "query.shift": zeros, "key.matrix": eye, "key.shift": zeros, "scale": scale}
        return {name: part.clone() for name, part in named.items()}

    def keys(self, k_BGND: Tensor, weights: Weights) -> Features:
        """The function elu + 1, and the scale."""
        found = plain(elu(k_BGND @ weights["key.matrix"] + weights["key.shift"]) + 1)
        return Features(found.value, found.log + weights["scale"])

    def queries(self, q_BGND: Tensor, weights: Weights, centre: Centre | None) -> Features:
        """The function elu + 1."""
        del centre
        return plain(elu(q_BGND @ weights["query.matrix"] + weights["query.shift"]) + 1)
