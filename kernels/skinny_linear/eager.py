"""A linear layer of few tokens: torch's own product, which sums in float32 and rounds once.

Shape legend: B tokens, E inputs, F outputs.
"""

import torch
from torch.nn.functional import linear


def skinny_linear(
    x_BE: torch.Tensor,
    weight_FE: torch.Tensor,
    bias_F: torch.Tensor | None = None,
    out_BF: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply, add the bias, and round.

    Args:
        x_BE: (B, E) inputs.
        weight_FE: (F, E).
        bias_F: (F,), or none.
        out_BF: (B, F) where the result is written, of the dtype of the inputs; or none.

    Returns:
        (B, F): `out_BF`, if given.
    """
    if out_BF is None:
        return linear(x_BE, weight_FE, bias_F)
    if bias_F is None:
        return torch.mm(x_BE, weight_FE.mT, out=out_BF)
    return torch.addmm(bias_F, x_BE, weight_FE.mT, out=out_BF)
