"""Attention to the rows that rank best, in plain torch.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R dims that rank, N sets, K width.
"""

import torch

from ..gather_decode.eager import gather_decode
from ..lowrank_score.eager import lowrank_score
from ..op import Reduce
from ..select_topk.eager import select_topk


def topk_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    rank_q_BHR: torch.Tensor,
    rank_k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    reduce: Reduce,
    wanted_B: torch.Tensor,
    width: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rank the visible rows as `lowrank_score` does, choose as `select_topk`, attend as `gather_decode`.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        rank_q_BHR: (B, H, R) queries that rank; head h reads KV head h // J.
        rank_k_BGSR: (B, G, S, R) keys that rank.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        reduce: "max" or "sum" over the query heads of a KV head (N = G), or "none" (N = H).
        wanted_B: (B,) int32, rows wanted of each sequence.
        width: K; no more than this many rows are chosen.
        scale: Factor of the scores of the attention.

    Returns:
        (B, H, D) attention; index_BNK, (B, N, K) int32, ascending, -1 past the last chosen row; count_BN, (B, N) int32.

    Raises:
        ValueError: If `reduce` is none of the three, or `width` is not positive.
    """
    s_BNS = lowrank_score(rank_q_BHR, rank_k_BGSR, lo_B, hi_B, reduce)
    index_BNK, count_BN = select_topk(s_BNS, wanted_B, width)
    return gather_decode(q_BHD, k_BGSD, v_BGSD, index_BNK, count_BN, scale), index_BNK, count_BN
