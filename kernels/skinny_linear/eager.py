"""A linear layer of few tokens, in plain torch.

Shape legend: B tokens, E inputs, F outputs.
"""

import torch


def skinny_linear(
    x_BE: torch.Tensor,
    weight_FE: torch.Tensor,
    bias_F: torch.Tensor | None = None,
    out_BF: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply, add the bias, and round once.

    Args:
        x_BE: (B, E) inputs.
        weight_FE: (F, E).
        bias_F: (F,), or none.
        out_BF: (B, F) where the result is written, or none.

    Returns:
        (B, F): `out_BF`, if given.
    """
    wide = torch.promote_types(x_BE.dtype, torch.float32)
    whole_BF = x_BE.to(wide) @ weight_FE.to(wide).mT
    if bias_F is not None:
        whole_BF = whole_BF + bias_F.to(wide)
    return whole_BF.to(x_BE.dtype) if out_BF is None else out_BF.copy_(whole_BF)
