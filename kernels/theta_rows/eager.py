"""Rows above a threshold within bounds, and the share of weight that they have, in plain torch.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, R dims, X segments, W rows of a segment.
"""

import torch

from ..lowrank_score.eager import lowrank_score


def theta_rows(
    q_BHR: torch.Tensor,
    k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
    threshold_BG: torch.Tensor,
    least_B: torch.Tensor,
    most_B: torch.Tensor,
    segments: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose every visible row whose largest scaled score in its group exceeds a threshold.

    Where these are fewer than `least`, or more than `most`, so many of the best are chosen instead, the lowest rows
    first among equals. The rows are shared by X segments of W = ceil(S / X) consecutive rows.

    Args:
        q_BHR: (B, H, R) queries; head h reads KV head h // J.
        k_BGSR: (B, G, S, R) keys.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        scale: Factor of the scores.
        threshold_BG: (B, G) float32; -inf chooses all.
        least_B: (B,) int32.
        most_B: (B,) int32, not below `least`.
        segments: X.

    Returns:
        index_BGK, (B, G, X * W) int32: each segment begins with its chosen rows, ascending; the rest is undefined.
        count_BGX, (B, G, X) int32, the chosen rows of each segment. `gather_decode` takes both.
        share_BH, float32: of the softmax over these scores, what the chosen rows have; 0 where nothing is visible.
    """
    score_BHS = lowrank_score(q_BHR, k_BGSR, lo_B, hi_B, "none") * scale
    batch, groups, rows = k_BGSR.shape[:3]
    rank_BGS = score_BHS.unflatten(1, (groups, -1)).amax(2)
    seen_BGS = rank_BGS > float("-inf")
    above_BGS = (rank_BGS > threshold_BG[..., None]) & seen_BGS
    count_BG = above_BGS.sum(-1)
    k_BG = count_BG.maximum(least_B[:, None]).minimum(most_B[:, None]).minimum(seen_BGS.sum(-1))
    # a stable sort keeps the order of rows among equals
    place_BGS = rank_BGS.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    chosen_BGS = torch.where((k_BG == count_BG)[..., None], above_BGS, (place_BGS < k_BG[..., None]) & seen_BGS)
    weight_BHS = score_BHS.softmax(-1).nan_to_num(0.0)
    share_BH = (weight_BHS * chosen_BGS.repeat_interleave(score_BHS.shape[1] // groups, 1)).sum(-1)
    width = -(-rows // segments)
    padded = torch.nn.functional.pad(chosen_BGS, (0, segments * width - rows)).view(batch, groups, segments, width)
    order_BGXW = padded.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices
    first_X1 = torch.arange(segments, device=rank_BGS.device)[:, None] * width
    return (order_BGXW + first_X1).flatten(2).to(torch.int32), padded.sum(-1).to(torch.int32), share_BH
