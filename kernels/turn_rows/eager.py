"""Rows turned by rotary angles out of a table, in plain torch.

Shape legend: B batch, H heads, T rows, K turns of each row, D head dim, P angles, R turned dims, X = H or 1.
"""

import torch


def turn_rows(
    x_BHTD: torch.Tensor, cos_PR: torch.Tensor, sin_PR: torch.Tensor, row_BXTK: torch.Tensor | None = None
) -> torch.Tensor:
    """Turn each pair (i, i + R/2) of the first R dims by its angle (RoFormer, arXiv 2104.09864); others stay.

    Args:
        x_BHTD: (B, H, T, D) rows.
        cos_PR: (P, R) cosines, both halves alike.
        sin_PR: (P, R) sines, both halves alike.
        row_BXTK: (B, X, T, K) integers: which angles turn each row, the same for all heads if X = 1. If absent, K is 1,
            and row t of sequence b has the angle b * T + t; those of sequences beyond B are not used.

    Returns:
        (B, H, T, K, D) in the dtype of x, turned in at least float32.

    Raises:
        ValueError: If the index is for other rows, or there are not angles for whole sequences where none says which.
    """
    check_angles(x_BHTD, cos_PR, sin_PR, row_BXTK)
    batch, _, rows, dim = x_BHTD.shape
    width = cos_PR.shape[1]
    wide = torch.promote_types(x_BHTD.dtype, torch.float32)
    index = slice(batch * rows) if row_BXTK is None else row_BXTK.long()
    shape = (batch, 1, rows, 1, width) if row_BXTK is None else (*row_BXTK.shape, width)
    cos, sin = (table[index].to(wide).view(shape) for table in (cos_PR, sin_PR))
    x_BHT1D = x_BHTD.to(wide)[:, :, :, None]
    first, second = x_BHT1D[..., :width].chunk(2, -1)
    turned = x_BHT1D[..., :width] * cos + torch.cat([-second, first], -1) * sin
    if width < dim:
        turned = torch.cat([turned, x_BHT1D[..., width:].expand(*turned.shape[:-1], -1)], -1)
    return turned.to(x_BHTD.dtype)


def check_angles(
    x_BHTD: torch.Tensor, cos_PR: torch.Tensor, sin_PR: torch.Tensor, row_BXTK: torch.Tensor | None
) -> None:
    """Refuse angles for other rows.

    Args:
        x_BHTD: (B, H, T, D) rows.
        cos_PR: (P, R) cosines.
        sin_PR: (P, R) sines.
        row_BXTK: (B, X, T, K) which angles, or None.

    Raises:
        ValueError: As `turn_rows`.
    """
    batch, heads, rows, dim = x_BHTD.shape
    if cos_PR.shape != sin_PR.shape or cos_PR.shape[1] % 2 or cos_PR.shape[1] > dim:
        raise ValueError(f"expected cosines and sines of an even width up to {dim}, got {tuple(cos_PR.shape)}")
    if row_BXTK is None:
        if cos_PR.shape[0] < batch * rows or cos_PR.shape[0] % max(rows, 1):
            raise ValueError(f"expected an angle for each of {batch} x {rows} rows, got {cos_PR.shape[0]}")
    elif (row_BXTK.shape[0], row_BXTK.shape[2]) != (batch, rows) or row_BXTK.shape[1] not in (1, heads):
        raise ValueError(f"expected an index for rows {(batch, heads, rows)}, got {tuple(row_BXTK.shape)}")
