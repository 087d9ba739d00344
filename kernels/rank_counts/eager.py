"""How many keys of each row rank above a threshold, in plain torch.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, R dims of the
ranks, N = G or H sets of rows.
"""

import torch

from ..kth_score.eager import ROWS_AT_ONCE, check_reduce, ranks
from ..op import Reduce


def rank_counts(
    rank_q_BHTR: torch.Tensor,
    rank_k_BGSR: torch.Tensor,
    threshold_BNT: torch.Tensor,
    first_B: torch.Tensor,
    scale: float,
    reduce: Reduce,
) -> torch.Tensor:
    """Count, causally, the keys that `threshold_prefill` would keep.

    Args:
        rank_q_BHTR: (B, H, T, R) queries of the ranks, of the last T rows.
        rank_k_BGSR: (B, G, S, R) keys of the ranks.
        threshold_BNT: (B, N, T) float32; a key counts if its rank is strictly above.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the ranks, positive.
        reduce: "max" ranks once for the query heads of a KV head (N = G), "none" for each (N = H).

    Returns:
        (B, N, T) int32.

    Raises:
        ValueError: If `reduce` is neither.
    """
    check_reduce(reduce)
    wide = torch.promote_types(rank_q_BHTR.dtype, torch.float32)
    keys, new, parts = rank_k_BGSR.to(wide), rank_q_BHTR.shape[2], []
    for at in range(0, new, ROWS_AT_ONCE):
        rows = slice(at, at + ROWS_AT_ONCE)
        rank = ranks(rank_q_BHTR[:, :, rows].to(wide), keys, first_B, scale, reduce, keys.shape[2] - new + at)
        parts.append(((rank > threshold_BNT[:, :, rows, None]) & (rank > -torch.inf)).sum(-1).int())
    return torch.cat(parts, 2)
