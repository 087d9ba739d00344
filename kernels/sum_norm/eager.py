"""Parts of several ranks added to the residual, and the sum normalised, in plain torch.

Shape legend: B texts, E hidden size, X ranks, C rows of a part, at least B.
"""

import torch

from .meeting import Meeting


def sum_norm(
    x_BE: torch.Tensor,
    weight_E: torch.Tensor,
    epsilon: float,
    parts: tuple[torch.Tensor, ...],
    meeting: Meeting | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add in the order of the ranks, round once to the dtype, and divide by the root of the mean square.

    Args:
        x_BE: (B, E) residual stream, the same on every rank.
        weight_E: (E,) factor of each channel.
        epsilon: Added to the mean square.
        parts: X tensors (C, E), one of each rank; the first B rows count.
        meeting: Not used: who calls this knows that the parts are there.

    Returns:
        The normalised sum and the sum, (B, E) each.
    """
    del meeting
    wide = torch.promote_types(x_BE.dtype, torch.float32)
    whole_BE = torch.zeros_like(x_BE, dtype=wide)
    for part_CE in parts:
        whole_BE += part_CE[: x_BE.shape[0]].to(wide)
    sum_BE = (x_BE.to(wide) + whole_BE).to(x_BE.dtype)
    whole_BE = sum_BE.to(wide)
    root_B1 = (whole_BE.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (whole_BE * root_B1 * weight_E.to(wide)).to(x_BE.dtype), sum_BE
