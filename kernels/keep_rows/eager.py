"""Rows of a cache moved to its beginning, in plain torch.

Shape legend: B batch, G KV heads, S rows in the cache, W width of a row, N = 1 or G sets of rows, K rows kept.
"""

import torch


def keep_rows(rows_BGSW: torch.Tensor, index_BNK: torch.Tensor) -> torch.Tensor:
    """Move the rows that are kept to the beginning, in place; what lies behind them stays.

    Args:
        rows_BGSW: (B, G, S, W), written.
        index_BNK: (B, N, K) int64 rows, ascending, K at most S; -1, before all others, leaves what lies there.

    Returns:
        (B, G, S, W), the same tensor.
    """
    kept = index_BNK.shape[2]
    index_BNK1 = index_BNK[..., None].expand(-1, rows_BGSW.shape[1], -1, rows_BGSW.shape[3])
    moved = rows_BGSW.gather(2, index_BNK1.clamp(min=0))
    rows_BGSW[:, :, :kept] = torch.where(index_BNK1 >= 0, moved, rows_BGSW[:, :, :kept])
    return rows_BGSW
