"""Rows of a cache moved to its beginning, in plain torch.

Shape legend: B batch, G KV heads, S rows in the cache, D, W widths of a row, N = 1 or G sets of rows, K rows kept.
"""

import torch


def keep_rows(
    k_BGSD: torch.Tensor, v_BGSD: torch.Tensor | None, more_BGSW: torch.Tensor | None, index_BNK: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """Move the rows that are kept to the beginning, in place, of up to three tensors; what lies behind them stays.

    Args:
        k_BGSD: (B, G, S, D), written.
        v_BGSD: (B, G, S, D) of another D, or nothing, written.
        more_BGSW: (B, G, S, W), or nothing, written.
        index_BNK: (B, N, K) int64 rows, ascending, K at most S; -1, before all others, leaves what lies there.

    Returns:
        The same three.

    Raises:
        ValueError: If a tensor is of other texts, heads or rows.
    """
    parts = (k_BGSD, v_BGSD, more_BGSW)
    check_same_rows(*parts)
    for part in parts:
        if part is not None:
            move(part, index_BNK)
    return parts


def check_same_rows(*parts: torch.Tensor | None) -> None:
    """Refuse tensors whose rows cannot be moved together.

    Args:
        parts: (B, G, S, any width), or nothing.

    Raises:
        ValueError: If one is of other texts, heads or rows.
    """
    shapes = {tuple(part.shape[:3]) for part in parts if part is not None}
    if len(shapes) > 1:
        raise ValueError(f"expected tensors of the same texts, heads and rows, got (B, G, S) {sorted(shapes)}")


def move(rows_BGSW: torch.Tensor, index_BNK: torch.Tensor) -> None:
    """Move the rows of one tensor.

    Args:
        rows_BGSW: (B, G, S, W), written.
        index_BNK: (B, N, K) int64 rows.
    """
    kept = index_BNK.shape[2]
    index_BNK1 = index_BNK[..., None].expand(-1, rows_BGSW.shape[1], -1, rows_BGSW.shape[3])
    moved = rows_BGSW.gather(2, index_BNK1.clamp(min=0))
    rows_BGSW[:, :, :kept] = torch.where(index_BNK1 >= 0, moved, rows_BGSW[:, :, :kept])
