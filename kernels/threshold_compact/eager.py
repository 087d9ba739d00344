"""Rows whose score reaches a threshold, in plain torch.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result.
"""

import torch


def threshold_compact(s_BNS: torch.Tensor, threshold_BN: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose every row whose score is at or above the threshold of its set.

    A score of -inf or NaN is never chosen, whatever the threshold. Where more than K rows pass, the last K of them
    are kept, which are the most recent ones: the search for the best K is `select_topk`.

    Args:
        s_BNS: (B, N, S) scores.
        threshold_BN: (B, N) float32 thresholds; NaN chooses nothing.
        width: K; no more than this many rows are chosen.

    Returns:
        index_BNK, (B, N, K) int32, ascending, -1 past the last chosen row;
        count_BN, (B, N) int32, min(K, rows that pass).

    Raises:
        ValueError: If `width` is not positive.
    """
    if width < 1:
        raise ValueError(f"expected a positive width, got {width}")
    rows = s_BNS.shape[-1]
    passing_BNS = (s_BNS >= threshold_BN[..., None]) & (s_BNS > float("-inf"))
    total_BN1 = passing_BNS.sum(-1, keepdim=True)
    slot_BNS = passing_BNS.cumsum(-1) - 1 - (total_BN1 - width).clamp_min(0)
    # Rows that are not chosen all write to one spare slot, which is cut off: static shapes, no host sync.
    slot_BNS = torch.where(passing_BNS & (slot_BNS >= 0), slot_BNS, width)
    row_BNS = torch.arange(rows, dtype=torch.int32, device=s_BNS.device).expand_as(slot_BNS)
    index_BNK = torch.full((*threshold_BN.shape, width + 1), -1, dtype=torch.int32, device=s_BNS.device)
    index_BNK = index_BNK.scatter(-1, slot_BNS, row_BNS)[..., :width].contiguous()
    return index_BNK, total_BN1[..., 0].clamp_max(width).to(torch.int32)
