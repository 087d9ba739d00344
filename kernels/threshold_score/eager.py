"""Scores held against thresholds, in plain torch.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, R dims, X segments, W rows of a segment.
"""

import torch

from ..lowrank_score.eager import lowrank_score
from ..op import Reduce


def threshold_score(
    q_BHR: torch.Tensor,
    k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    reduce: Reduce,
    threshold_BG: torch.Tensor,
    segments: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose every visible row whose score is at or above the threshold of its set; a NaN is never chosen.

    The rows are shared by X segments of W = ceil(S / X) consecutive rows, so nothing can be over-full.

    Args:
        q_BHR: (B, H, R) queries; head h reads KV head h // J.
        k_BGSR: (B, G, S, R) keys.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        reduce: "max" or "sum" over the query heads of a KV head.
        threshold_BG: (B, G) float32 thresholds.
        segments: X.

    Returns:
        index_BGK, (B, G, X * W) int32: each segment begins with its chosen rows, ascending; the rest is undefined.
        count_BGX, (B, G, X) int32, the chosen rows of each segment. `gather_decode` takes both.

    Raises:
        ValueError: If `reduce` is neither "max" nor "sum".
    """
    check_reduce(reduce)
    s_BGS = lowrank_score(q_BHR, k_BGSR, lo_B, hi_B, reduce)
    passing_BGS = (s_BGS >= threshold_BG[..., None]) & (s_BGS > float("-inf"))
    batch, sets, rows = s_BGS.shape
    width = -(-rows // segments)
    passing_BGK = torch.nn.functional.pad(passing_BGS, (0, segments * width - rows))
    passing_BGXW = passing_BGK.view(batch, sets, segments, width)
    # A stable sort of true before false moves the chosen rows to the front, in order.
    order_BGXW = passing_BGXW.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices
    first_X1 = torch.arange(segments, device=s_BGS.device)[:, None] * width
    return (order_BGXW + first_X1).flatten(2).to(torch.int32), passing_BGXW.sum(-1).to(torch.int32)


def check_reduce(reduce: Reduce) -> None:
    """Refuse a set for each query head: its rows would be scored once for each.

    Args:
        reduce: What was asked for.

    Raises:
        ValueError: If it is neither "max" nor "sum".
    """
    if reduce not in ("max", "sum"):
        raise ValueError(f"expected reduce among 'max', 'sum', got {reduce!r}")
