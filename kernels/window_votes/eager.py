"""How much attention each key gets from the last rows of a prompt, pooled along the text, in plain torch.

Shape legend: B batch, H query heads, G KV heads, W rows of the window (the last W of the S key rows), S key rows,
D head dim.
"""

from typing import Literal

import torch
from torch.nn import functional

from ..kth_score.eager import ranks

Group = Literal["mean", "max", "sum"]
Pooling = Literal["max", "avg"]


def window_votes(
    q_BHWD: torch.Tensor,
    k_BGSD: torch.Tensor,
    first_B: torch.Tensor,
    width_B: torch.Tensor,
    scale: float,
    group: Group,
    kernel: int,
    pooling: Pooling,
) -> torch.Tensor:
    """Sum the causal attention of the window's rows, join the heads of a group, pool (SnapKV, arXiv 2404.14469).

    With a window of one row, no group and a kernel of 1 these are the weights of the last row (TOVA).

    Args:
        q_BHWD: (B, H, W, D) queries of the last W rows.
        k_BGSD: (B, G, S, D) keys.
        first_B: (B,) int32, first row that is no padding.
        width_B: (B,) int32, how many of the last rows vote, at most W; these rows themselves get no vote. 0: all W
            rows vote, and may get votes.
        scale: Factor of the scores.
        group: How the query heads of a KV head are joined, before pooling.
        kernel: Odd width of the pooling; beyond the ends stand zeros, as far as the mean counts them.
        pooling: "max" or "avg".

    Returns:
        (B, G, S), at least float32: pooled votes; zeros for the rows that vote.

    Raises:
        ValueError: If the kernel is even, or a word is not known.
    """
    check_words(group, kernel, pooling)
    wide = torch.promote_types(q_BHWD.dtype, torch.float32)
    window, rows = q_BHWD.shape[2], k_BGSD.shape[2]
    score_BHWS = ranks(q_BHWD.to(wide), k_BGSD.to(wide), first_B, scale, "none", rows - window)
    voters_BW = torch.arange(window, device=first_B.device) >= window - _voting(width_B, window)[:, None]
    weight_BHWS = score_BHWS.softmax(-1).nan_to_num(0.0) * voters_BW[:, None, :, None]
    vote_BGJS = weight_BHWS.sum(2).unflatten(1, (k_BGSD.shape[1], -1))
    vote_BGS = {"mean": vote_BGJS.mean, "sum": vote_BGJS.sum, "max": vote_BGJS.amax}[group](2)
    inside_B1S = (torch.arange(rows, device=first_B.device) >= rows - width_B[:, None])[:, None]
    pool = functional.max_pool1d if pooling == "max" else functional.avg_pool1d
    pooled_BGS = pool(vote_BGS.masked_fill(inside_B1S, 0.0), kernel, 1, kernel // 2)
    return pooled_BGS.masked_fill(inside_B1S, 0.0)


def _voting(width_B: torch.Tensor, window: int) -> torch.Tensor:
    return torch.where(width_B > 0, width_B, window)


def check_words(group: str, kernel: int, pooling: str) -> None:
    """Refuse what is not known.

    Args:
        group: How heads are joined.
        kernel: Width of the pooling.
        pooling: Its kind.

    Raises:
        ValueError: If the kernel is even, or a word is not known.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"expected an odd kernel, got {kernel}")
    if group not in ("mean", "max", "sum"):
        raise ValueError(f"expected group among 'mean', 'max', 'sum', got {group!r}")
    if pooling not in ("max", "avg"):
        raise ValueError(f"expected pooling 'max' or 'avg', got {pooling!r}")
