"""The Taylor map without products of different components.

Shapes: B batch, G key/value heads, N rows, D head dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..feature_map import Centre, Features, Fixed, Weights, plain


@dataclass(frozen=True)
class TaylorDiagonal(Fixed):
    """[1, k, k^2 / sqrt 2] by components: 1 + 2 D features.

    1 + x + (sum of squares of the terms of x) / 2, which lacks most of x^2 / 2, and may be negative: around a centre,
    where the terms of first order cancel, the normaliser never is. The map of NTK-KV (see ratchet), unrectified.
    """

    centres: ClassVar[bool] = True

    def features(self, head_dim: int) -> int:
        """1 + 2 D."""
        return 1 + 2 * head_dim

    def keys(self, k_BGND: Tensor, weights: Weights) -> Features:
        """1, components, squares."""
        del weights
        return plain(torch.cat([torch.ones_like(k_BGND[..., :1]), k_BGND, k_BGND.square() / math.sqrt(2)], -1))

    def queries(self, q_BGND: Tensor, weights: Weights, centre: Centre | None) -> Features:
        """The same; around a centre c, with t = q . c: (1 - t + sum (q c)^2 / 2), q - q^2 c, squares."""
        if centre is None:
            return self.keys(q_BGND, weights)
        part = q_BGND * centre.offset
        constant = 1 - part.sum(-1, keepdim=True) + part.square().sum(-1, keepdim=True) / 2
        value = torch.cat([constant, q_BGND - q_BGND * part, q_BGND.square() / math.sqrt(2)], -1)
        return Features(value, (q_BGND * (centre.anchor + centre.offset)).sum(-1))
