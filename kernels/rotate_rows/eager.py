"""Queries and keys turned by their position, in plain torch.

Shape legend: B batch, H query heads, G KV heads, n either, D head dim.
"""

import torch

from ..turn_rows.eager import turn_rows


def rotate_rows(
    q_BHD: torch.Tensor, k_BGD: torch.Tensor, cos_BD: torch.Tensor, sin_BD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn each pair (i, i + D/2) by its angle: `turn_rows` of the one row of each text.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGD: (B, G, D) keys.
        cos_BD: (B, D) cosines, both halves alike.
        sin_BD: (B, D) sines, both halves alike.

    Returns:
        Queries and keys, turned.

    Raises:
        ValueError: If there are fewer angles than texts, or they are not for whole heads.
    """
    if cos_BD.shape[1] != q_BHD.shape[2]:
        raise ValueError(f"expected angles of width {q_BHD.shape[2]}, got {tuple(cos_BD.shape)}")
    q_BH11D, k_BG11D = (turn_rows(x_BnD[:, :, None], cos_BD, sin_BD) for x_BnD in (q_BHD, k_BGD))
    return q_BH11D[:, :, 0, 0], k_BG11D[:, :, 0, 0]
