"""The second-order Taylor map on a projection: 1 + x + x^2 / 2 in place of exp(x).

Shapes: B batch, G key/value heads, N rows, D head dimension, W width of the projection, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.taylor_features import OP as TAYLOR_FEATURES
from ..feature_map import Centre, FeatureMap, Features, Weights, generators, leading, orthonormal, plain, spread
from ..memory import Site


@dataclass(frozen=True)
class Taylor(FeatureMap):
    """[1, y, y (x) y / sqrt 2] of y = k P, of the products each pair once: 1 + W + W (W + 1) / 2 features.

    Based (arXiv 2402.18668), where P is learned; here P is the leading components of the keys where a basis is given,
    else random and orthonormal, multiplied by sqrt(D / W) so that products are right in the mean. With W = D there is
    no projection. Expanded around c it reads exp(q . c) (1 + x + x^2 / 2), x = q . (k - c) projected: the factor takes
    all D dimensions, and the sums over keys need not change for another c.

    `width`: W, 16 as in Based.
    """

    centres: ClassVar[bool] = True

    def features(self, head_dim: int) -> int:
        """1 + W + W (W + 1) / 2."""
        wide = self._wide(head_dim)
        return 1 + wide + wide * (wide + 1) // 2

    def _wide(self, head_dim: int) -> int:
        return min(self.width or 16, head_dim)

    def weights(self, site: Site) -> Weights:
        """The projection [G, D, W]; none where W = D."""
        wide = self._wide(site.head_dim)
        if wide == site.head_dim:
            return {}
        if "basis" in site.artifacts:
            return {"projection": leading(site, wide)}
        drawn = [orthonormal(site.head_dim, wide, g) for g in generators(self.seed, site)]
        return {"projection": torch.stack(drawn) * spread(site.head_dim, wide)}

    def keys(self, k_BGND: Tensor, weights: Weights) -> Features:
        """1, y, and the products of its components."""
        return plain(_expanded(k_BGND, weights))

    def queries(self, q_BGND: Tensor, weights: Weights, centre: Centre | None) -> Features:
        """The same; around a centre, with t = q . c: (1 - t + t^2 / 2), (1 - t) y, products; times exp(q . c)."""
        value = _expanded(q_BGND, weights)
        if centre is None:
            return plain(value)
        y = value[..., 1 : 1 + self._wide(q_BGND.shape[3])]
        offset = centre.offset @ weights["projection"] if "projection" in weights else centre.offset
        t = (y * offset).sum(-1, keepdim=True)
        y *= 1 - t
        value[..., :1] = 1 - t + t.square() / 2
        return Features(value, (q_BGND * (centre.anchor + centre.offset)).sum(-1))


def _expanded(x_BGND: Tensor, weights: Weights) -> Tensor:
    none = x_BGND.new_empty(*x_BGND.shape[1::2], 0)
    value: Tensor = TAYLOR_FEATURES(x_BGND, weights.get("projection", none))
    return value
