"""How much attention each key gets from all query rows, in plain torch.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim.
"""

import torch

from ..kth_score.eager import ROWS_AT_ONCE, ranks


def column_sums(q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, first_B: torch.Tensor, scale: float) -> torch.Tensor:
    """Sum causal attention over the query rows and the query heads of each KV head (H2O, arXiv 2306.14048).

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows.
        k_BGSD: (B, G, S, D) keys.
        first_B: (B,) int32, first row that is no padding; rows before it neither give nor get attention.
        scale: Factor of the scores.

    Returns:
        (B, G, S), at least float32.
    """
    wide = torch.promote_types(q_BHTD.dtype, torch.float32)
    keys, new, rows = k_BGSD.to(wide), q_BHTD.shape[2], k_BGSD.shape[2]
    sums_BGS = torch.zeros(keys.shape[:3], dtype=wide, device=keys.device)
    for at in range(0, new, ROWS_AT_ONCE):
        queries = q_BHTD[:, :, at : at + ROWS_AT_ONCE].to(wide)
        score_BHtS = ranks(queries, keys, first_B, scale, "none", rows - new + at)
        weight_BHtS = score_BHtS.softmax(-1).nan_to_num(0.0)  # padding rows see nothing
        sums_BGS += weight_BHtS.sum(2).view(sums_BGS.shape[0], sums_BGS.shape[1], -1, rows).sum(2)
    return sums_BGS


def row_sums(q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, first_B: torch.Tensor, scale: float) -> torch.Tensor:
    """Give the log of each causal row's sum of exp(scores): the first of the two passes.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows.
        k_BGSD: (B, G, S, D) keys.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the scores.

    Returns:
        (B, H, T), at least float32; -inf for padding.
    """
    wide = torch.promote_types(q_BHTD.dtype, torch.float32)
    keys, new, rows = k_BGSD.to(wide), q_BHTD.shape[2], k_BGSD.shape[2]
    parts = [
        ranks(q_BHTD[:, :, at : at + ROWS_AT_ONCE].to(wide), keys, first_B, scale, "none", rows - new + at).logsumexp(
            -1
        )
        for at in range(0, new, ROWS_AT_ONCE)
    ]
    return torch.cat(parts, 2)
