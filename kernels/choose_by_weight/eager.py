"""Exact choice of the rows with the largest weights of a softmax, in plain torch.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, X parts of a sum, K width.
"""

import torch

from ..select_topk.eager import select_topk
from ..sparq_score.eager import joined_parts
from ..visible import visible_rows


def choose_by_weight(
    score_BHS: torch.Tensor,
    part_BHX2: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    local_B: torch.Tensor,
    k_B: torch.Tensor,
    groups: int,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose the k rows whose weights, summed over a group of heads, are largest; the lowest rows first among equals.

    A weight is exp(score - lse). The last visible rows come before all others. No other row is chosen
    whose sum is NaN.

    Args:
        score_BHS: (B, H, S) scores, -inf for rows that are not visible; head h is of group h // J.
        part_BHX2: (B, H, X, 2) the largest score of each part of the rows, and the sum of exp(score - it).
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        local_B: (B,) int32, so many of the last visible rows come first.
        k_B: (B,) int32, rows wanted of each sequence.
        groups: G.
        width: K; no more than this many rows are chosen.

    Returns:
        index_BGK, (B, G, K) int32, ascending, -1 past the last chosen row;
        count_BG, (B, G) int32, min(k, K, rows that can be chosen);
        lse_BH, the log of the sum of exp(score), -inf where nothing is visible.

    Raises:
        ValueError: If `width` is not positive.
    """
    lse_BH = joined_parts(part_BHX2)
    index_BGK, count_BG = select_topk(ranks(score_BHS, lse_BH, lo_B, hi_B, local_B, groups), k_B, width)
    return index_BGK, count_BG, lse_BH


def ranks(
    score_BHS: torch.Tensor,
    lse_BH: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    local_B: torch.Tensor,
    groups: int,
) -> torch.Tensor:
    """Sum the weights over each group.

    Args:
        score_BHS: (B, H, S) scores.
        lse_BH: (B, H) the log of the sum of exp(score).
        lo_B: (B,) first visible row.
        hi_B: (B,) one past the last visible row.
        local_B: (B,) how many of the last visible rows are forced.
        groups: G.

    Returns:
        (B, G, S), +inf for local rows, -inf for rows that are not visible.
    """
    rows = score_BHS.shape[2]
    rank_BGS = (score_BHS - lse_BH[..., None]).exp().unflatten(1, (groups, -1)).sum(2)
    local_B1S, seen_B1S = visible_rows(hi_B - local_B, hi_B, rows), visible_rows(lo_B, hi_B, rows)
    return rank_BGS.masked_fill(local_B1S, float("inf")).masked_fill(~seen_B1S, float("-inf"))
