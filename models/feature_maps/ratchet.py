"""The map of NTK-KV's RatchetKV.

Shapes: B batch, G key/value heads, N rows, D head dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..feature_map import Centre, Features, Fixed, Weights, plain


@dataclass(frozen=True)
class Ratchet(Fixed):
    """[1, f(x), f(x)^2 / sqrt 2] with f(x) = x from 0 on and exp(x) below: 1 + 2 D features.

    As NTK-KV's code computes it (its activation works in place, so that the last part is made of f(x); ratchet_written
    is what its lines say). Always positive, and no expansion of exp(q . k).
    """

    def features(self, head_dim: int) -> int:
        """1 + 2 D."""
        return 1 + 2 * head_dim

    def keys(self, k_BGND: Tensor, weights: Weights) -> Features:
        """By components."""
        del weights
        f = rectified(k_BGND)
        return plain(torch.cat([torch.ones_like(f[..., :1]), f, f.square() / math.sqrt(2)], -1))

    def queries(self, q_BGND: Tensor, weights: Weights, centre: Centre | None) -> Features:
        """The same."""
        del centre
        return self.keys(q_BGND, weights)


def rectified(x: Tensor) -> Tensor:
    """F of the class above."""
    return torch.where(x < 0, x.clamp(max=0).exp(), x)
