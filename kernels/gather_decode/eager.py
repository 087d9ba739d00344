"""Decode attention over chosen rows, in plain torch.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, N = G or H sets of rows,
P = N / G sets that share a KV head, Q = H / N query heads that share a set, K width of the sets.
"""

import torch


def gather_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    index_BNK: torch.Tensor,
    count_BN: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attend from one query token of each sequence to the chosen rows only.

    Rows that are not chosen may hold anything, NaN included.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys, any strides.
        v_BGSD: (B, G, S, D) values, any strides.
        index_BNK: (B, N, K) int32 rows; N = G (one set for each KV head) or N = H (for each query head).
        count_BN: (B, N) int32, how many of the K are valid; or (B, N, segments), of each equal part of the K.
        scale: Factor of the scores.

    Returns:
        (B, H, D) in the dtype of the queries; zeros where the count is 0.
    """
    wide = torch.promote_types(q_BHD.dtype, torch.float32)
    batch, sets, width = index_BNK.shape
    q_BNQD = q_BHD.to(wide).view(batch, sets, -1, q_BHD.shape[-1])
    count_BNX = count_BN.view(batch, sets, -1)
    place_W = torch.arange(width // count_BNX.shape[2], device=count_BN.device)
    valid_BN1K = (place_W < count_BNX[..., None]).flatten(2)[:, :, None]
    # What is not valid reads a chosen row again: row 0, say, may not be chosen, and hold NaN.
    some_BN1 = index_BNK.gather(-1, valid_BN1K[:, :, 0].int().argmax(-1, keepdim=True))
    row_BNK = torch.where(valid_BN1K[:, :, 0], index_BNK, some_BN1).clamp(0, k_BGSD.shape[2] - 1).long()
    batch_B11 = torch.arange(batch, device=row_BNK.device)[:, None, None]
    head_N1 = torch.arange(sets, device=row_BNK.device)[:, None] // (sets // k_BGSD.shape[1])
    k_BNKD = k_BGSD[batch_B11, head_N1, row_BNK].to(wide)
    v_BNKD = v_BGSD[batch_B11, head_N1, row_BNK].to(wide)
    score_BNQK = ((q_BNQD @ k_BNKD.mT) * scale).masked_fill(~valid_BN1K, float("-inf"))
    out_BNQD = score_BNQK.softmax(-1).masked_fill(~valid_BN1K, 0.0) @ v_BNKD
    out_BNQD = out_BNQD.masked_fill((count_BNX.sum(-1) == 0)[..., None, None], 0.0)
    return out_BNQD.view(q_BHD.shape).to(q_BHD.dtype)
