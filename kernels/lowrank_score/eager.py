"""Scores of cached rows from some of their dimensions, in plain torch.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, R dims, N = G or H sets of rows.
"""

import torch

from ..op import Reduce
from ..visible import visible_rows


def lowrank_score(
    q_BHR: torch.Tensor,
    k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    reduce: Reduce,
) -> torch.Tensor:
    """Score every visible row; with R = D these are the exact scores, unscaled.

    Args:
        q_BHR: (B, H, R) queries; head h reads KV head h // J.
        k_BGSR: (B, G, S, R) keys.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        reduce: "max" or "sum" over the query heads of a KV head (N = G), or "none" (N = H).

    Returns:
        (B, N, S) float32 scores, -inf outside the interval.

    Raises:
        ValueError: If `reduce` is none of the three.
    """
    wide = torch.promote_types(q_BHR.dtype, torch.float32)
    batch, kv_heads, rows, dims = k_BGSR.shape
    q_BGJR = q_BHR.to(wide).reshape(batch, kv_heads, -1, dims)
    score_BGJS = q_BGJR @ k_BGSR.to(wide).mT
    score_BNS = _reduced(score_BGJS, reduce)
    return score_BNS.masked_fill(~visible_rows(lo_B, hi_B, rows), float("-inf"))


def _reduced(score_BGJS: torch.Tensor, reduce: Reduce) -> torch.Tensor:
    if reduce == "max":
        return score_BGJS.amax(2)
    if reduce == "sum":
        return score_BGJS.sum(2)
    if reduce == "none":
        return score_BGJS.flatten(1, 2)
    raise ValueError(f"expected reduce among 'max', 'sum', 'none', got {reduce!r}")
