"""Queries and keys turned by their position, in plain torch.

Shape legend: B batch, H query heads, G KV heads, n any of them, D head dim.
"""

import torch


def rotate_rows(
    q_BHD: torch.Tensor, k_BGD: torch.Tensor, cos_BD: torch.Tensor, sin_BD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn each pair (i, i + D/2) by its angle.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGD: (B, G, D) keys.
        cos_BD: (B, D) cosines, both halves alike.
        sin_BD: (B, D) sines, both halves alike.

    Returns:
        Queries and keys, turned.
    """
    return _turned(q_BHD, cos_BD, sin_BD), _turned(k_BGD, cos_BD, sin_BD)


def _turned(x_BnD: torch.Tensor, cos_BD: torch.Tensor, sin_BD: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(x_BnD.dtype, torch.float32)
    first, second = x_BnD.to(wide).chunk(2, -1)
    turned = x_BnD.to(wide) * cos_BD.to(wide)[:, None] + torch.cat([-second, first], -1) * sin_BD.to(wide)[:, None]
    return turned.to(x_BnD.dtype)
