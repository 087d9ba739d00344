"""Features of the second-order Taylor map, in plain torch.

Shape legend: B batch, G KV heads, N rows, D head dim, W width of the projection, F = 1 + W + W (W + 1) / 2 features.
"""

import functools
import math

import torch


def taylor_features(x_BGND: torch.Tensor, projection_GDW: torch.Tensor) -> torch.Tensor:
    """Give [1, y, y_i y_j] of y = x P, each pair i <= j once and squares over sqrt 2 (Based, arXiv 2402.18668).

    The product of two rows' features is 1 + s + s^2 / 2, with s the product of their projections.

    Args:
        x_BGND: (B, G, N, D) rows.
        projection_GDW: (G, D, W) projection; (G, D, 0) for none, W = D.

    Returns:
        (B, G, N, F), at least float32.
    """
    x = x_BGND.to(torch.promote_types(x_BGND.dtype, torch.float32))
    y = x @ projection_GDW.to(x.dtype) if projection_GDW.shape[2] else x
    first, second, factor = _triangle(y.shape[-1], y.device)
    pairs = y[..., first] * y[..., second] * factor.to(y.dtype)
    return torch.cat([torch.ones_like(y[..., :1]), y, pairs], -1)


@functools.cache
def _triangle(width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs of components, row by row, and their factors."""
    first, second = torch.triu_indices(width, width, device=device)
    one = torch.ones((), dtype=torch.float64, device=device)
    return first, second, torch.where(first == second, one / math.sqrt(2), one)
