"""The map of NTK-KV's RatchetKV, as its lines say.

Shapes: B batch, G key/value heads, N rows, D head dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..feature_map import Centre, Features, Fixed, Weights, plain
from .ratchet import rectified


@dataclass(frozen=True)
class RatchetWritten(Fixed):
    """[1, f(x), x^2 / sqrt 2] with f(x) = x from 0 on and exp(x) below: 1 + 2 D features.

    What NTK-KV's code would compute if its activation did not change x itself (ratchet is what it does compute).
    """

    def features(self, head_dim: int) -> int:
        """1 + 2 D."""
        return 1 + 2 * head_dim

    def keys(self, k_BGND: Tensor, weights: Weights) -> Features:
        """By components."""
        del weights
        parts = (torch.ones_like(k_BGND[..., :1]), rectified(k_BGND), k_BGND.square() / math.sqrt(2))
        return plain(torch.cat(parts, -1))

    def queries(self, q_BGND: Tensor, weights: Weights, centre: Centre | None) -> Features:
        """The same."""
        del centre
        return self.keys(q_BGND, weights)
