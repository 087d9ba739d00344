"""SparQ's approximate scores from the largest components of the query, in plain torch.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, R components, X parts.
"""

import torch

from ..visible import visible_rows


def sparq_score(
    q_BHD: torch.Tensor,
    k_BGDS: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    components: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score every visible row by the components of the query that are largest in magnitude.

    The R components are those of the largest magnitude, summed over the query heads of a KV head, the lowest first
    among equals. Scores are the products of these components, times the scale over the root of the share of the query's
    magnitude that they hold; weights are a softmax of them (SparQ Attention, arXiv 2312.04985, Algorithm 1). The weight
    of a row is exp(score - lse), which one needs of few rows.

    Args:
        q_BHD: (B, H, D) queries; head h reads KV head h // J.
        k_BGDS: (B, G, D, S) keys, laid out by component.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        components: R.
        scale: Factor of the whole products.

    Returns:
        score_BHS, float32, -inf for rows that are not visible;
        part_BHX2, float32, the largest score of each part of the rows and the sum of exp(score - it), -inf and 0 where
        nothing is visible. Here all rows are one part.
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
    score_BHS = score_BGJS.flatten(1, 2)
    top_BH1 = score_BHS.amax(-1, keepdim=True)
    base_BH1 = torch.where(top_BH1 == float("-inf"), 0.0, top_BH1)
    sum_BH1 = (score_BHS - base_BH1).exp().sum(-1, keepdim=True)
    return score_BHS, torch.stack((top_BH1, sum_BH1), -1)


def joined_parts(part_BHX2: torch.Tensor) -> torch.Tensor:
    """Put together what the parts of the rows tell.

    Args:
        part_BHX2: (B, H, X, 2) the largest score of each part, and the sum of exp(score - it).

    Returns:
        (B, H) the log of the sum of exp(score) over all rows, -inf where nothing is visible.
    """
    return (part_BHX2[..., 0] + part_BHX2[..., 1].log()).logsumexp(-1)
