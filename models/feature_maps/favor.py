"""FAVOR+: positive orthogonal random features.

Shapes: B batch, G key/value heads, N rows, D head dimension, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..feature_map import Centre, FeatureMap, Features, Weights, exponentials, generators, orthonormal
from ..memory import Site


@dataclass(frozen=True)
class Favor(FeatureMap):
    """exp(w . x - |x|^2 / 2) / sqrt F for F random w: right in the mean, with a variance that grows as exp(|q + k|^2).

    Performers (arXiv 2009.14794). The w of a block of D are orthogonal, their lengths those of Gaussian vectors, and
    each head draws its own. Each row keeps the logarithm of its largest feature apart, so nothing overflows.

    `width`: F, default 256.
    """

    def features(self, head_dim: int) -> int:
        """F."""
        del head_dim
        return self.width or 256

    def weights(self, site: Site) -> Weights:
        """The w, [G, D, F]."""
        size = self.features(site.head_dim)
        return {"directions": torch.stack([_directions(site.head_dim, size, g) for g in generators(self.seed, site)])}

    def keys(self, k_BGND: Tensor, weights: Weights) -> Features:
        """exp(w . k - |k|^2 / 2) / sqrt F."""
        wide = weights["directions"].shape[-1]
        length = k_BGND.square().sum(-1, keepdim=True) / 2
        return exponentials(k_BGND @ weights["directions"] - length - math.log(wide) / 2)

    def queries(self, q_BGND: Tensor, weights: Weights, centre: Centre | None) -> Features:
        """The same."""
        del centre
        return self.keys(q_BGND, weights)


def _directions(head_dim: int, count: int, generator: torch.Generator) -> Tensor:
    blocks = [orthonormal(head_dim, head_dim, generator) for _ in range(-(-count // head_dim))]
    lengths = torch.randn(head_dim, count, generator=generator).norm(dim=0)
    return torch.cat(blocks, 1)[:, :count] * lengths
