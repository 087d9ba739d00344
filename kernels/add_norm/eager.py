"""A residual added and normalised, in plain torch.

Shape legend: B batch, E hidden size.
"""

import torch


def add_norm(
    x_BE: torch.Tensor, delta_BE: torch.Tensor, weight_E: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add, round to the dtype as a model's residual stream does, and divide by the root of the mean square.

    Args:
        x_BE: (B, E) residual stream.
        delta_BE: (B, E) what a layer adds to it.
        weight_E: (E,) factor of each channel.
        epsilon: Added to the mean square.

    Returns:
        The normalised sum and the sum, (B, E) each.
    """
    wide = torch.promote_types(x_BE.dtype, torch.float32)
    sum_BE = (x_BE.to(wide) + delta_BE.to(wide)).to(x_BE.dtype)
    whole_BE = sum_BE.to(wide)
    root_B1 = (whole_BE.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (whole_BE * root_B1 * weight_E.to(wide)).to(x_BE.dtype), sum_BE
