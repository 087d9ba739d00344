"""elu + 1 by components.

Shapes: B batch, G key/value heads, N rows, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import elu

from ..feature_map import Centre, Features, Fixed, Weights, plain


@dataclass(frozen=True)
class Elu(Fixed):
    """elu(x) + 1: D features.

    Transformers are RNNs (arXiv 2006.16236); NTK-Attention (arXiv 2406.14036) takes x / D^(1/4), as it is here.
    Positive, and no approximation of exp(q . k): with exact rows beside it, its share of the softmax is wrong by
    whatever the two scales differ (elu_trained learns it).
    """

    def features(self, head_dim: int) -> int:
        """D."""
        return head_dim

    def keys(self, k_BGND: Tensor, weights: Weights) -> Features:
        """By components."""
        del weights
        return plain(elu(k_BGND) + 1)

    def queries(self, q_BGND: Tensor, weights: Weights, centre: Centre | None) -> Features:
        """The same."""
        del centre
        return self.keys(q_BGND, weights)
