"""Scores at the border of the k best of each row; `stored/` searches them.

Shape legend: B batch, H query heads, G KV heads, N = G or H sets of rows, T query rows (the last T of the S key rows),
S key rows, R dims of the scores.
"""

import torch

from ..dense_decode.fused import check_contiguous_rows
from ..many_rows import Tiles
from ..op import Reduce
from .eager import check_reduce
from .stored.fused import border_of_stored


def kth_score(
    q_BHTR: torch.Tensor,
    k_BGSR: torch.Tensor,
    k_BNT: torch.Tensor,
    first_B: torch.Tensor,
    scale: float,
    reduce: Reduce,
    plan: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the border as the eager twin does; scores of some rows at a time, 256 MB of them, are held.

    Args:
        q_BHTR: (B, H, T, R) queries; any strides, the last dim contiguous.
        k_BGSR: (B, G, S, R) keys; any strides, the last dim contiguous.
        k_BNT: (B, N, T) int32, how many rows each query row keeps; negative where the border is not asked for: of
            such a row no rank is searched.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the scores.
        reduce: "max" or "none".
        plan: How to cut the work, `queries` being lines; chosen from the shape if absent.

    Returns:
        Two (B, N, T) float32: the k-th largest score, +inf where k < 1, the smallest where there are no k; and the
        next, -inf where there is none, or where k is negative.

    Raises:
        ValueError: If `reduce` is neither, or the last dim is not contiguous.
    """
    check_reduce(reduce)
    check_contiguous_rows(q_BHTR, k_BGSR)
    return border_of_stored(q_BHTR, k_BGSR, k_BNT.to(torch.int32).contiguous(), first_B, scale, plan)
