"""SparQ's approximate scores from the largest components of the query, in plain torch.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, R components.
"""

import torch

from ..visible import visible_rows


def sparq_score(
    q_BHD: torch.Tensor,
    k_BGDS: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    local_B: torch.Tensor,
    components: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score every visible row by the components of the query that are largest in magnitude, and rank the rows.

    The R components are those of the largest magnitude, summed over the query heads of a KV head, the lowest first
    among equals. Scores are the products of these components, times the scale over the root of the share of the query's
    magnitude that they hold; weights are a softmax of them (SparQ Attention, arXiv 2312.04985, Algorithm 1). The weight
    of a row is exp(score - lse), which one needs of few rows.

    Args:
        q_BHD: (B, H, D) queries; head h reads KV head h // J.
        k_BGDS: (B, G, D, S) keys, laid out by component.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        local_B: (B,) int32, so many of the last visible rows come before all others.
        components: R.
        scale: Factor of the whole products.

    Returns:
        rank_BGS, float32: the weights summed over the group, +inf for local rows, -inf for rows that are not visible;
        score_BHS, float32, -inf for rows that are not visible;
        lse_BH, float32, the log of the sum of exp(score), -inf where nothing is visible.
    """
    wide = torch.promote_types(q_BHD.dtype, torch.float32)
    groups, rows = k_BGDS.shape[1], k_BGDS.shape[3]
    q_BGJD = q_BHD.to(wide).unflatten(1, (groups, -1))
    size_BGD = q_BGJD.abs().sum(2)
    best_BGR = size_BGD.sort(dim=-1, descending=True, stable=True).indices[..., :components]
    q_BGJR = q_BGJD.gather(-1, best_BGR[:, :, None].expand(-1, -1, q_BGJD.shape[2], -1))
    k_BGRS = k_BGDS.gather(2, best_BGR[..., None].expand(-1, -1, -1, rows)).to(wide)
    part_BGJ1 = q_BGJR.abs().sum(-1, keepdim=True) / q_BGJD.abs().sum(-1, keepdim=True)
    # a head without any of these components has equal weights everywhere
    part_BGJ1 = torch.where(part_BGJ1 > 0, part_BGJ1, 1.0)
    seen_B1S = visible_rows(lo_B, hi_B, rows)
    score_BGJS = (q_BGJR @ k_BGRS) * (scale * part_BGJ1.rsqrt())
    score_BGJS = score_BGJS.masked_fill(~seen_B1S[:, None], float("-inf"))
    weight_BGJS = score_BGJS.softmax(-1).nan_to_num(0.0)
    local_B1S = visible_rows(hi_B - local_B, hi_B, rows)
    rank_BGS = weight_BGJS.sum(2).masked_fill(local_B1S, float("inf")).masked_fill(~seen_B1S, float("-inf"))
    return rank_BGS, score_BGJS.flatten(1, 2), score_BGJS.logsumexp(-1).flatten(1)
