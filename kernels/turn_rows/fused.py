"""Rows turned by rotary angles out of a table, in one launch: each row is read once for all of its turns.

Shape legend: B batch, H heads, T rows, K turns of each row, D head dim, P angles, R turned dims, X = H or 1, L lines of
a tile.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..interpreter import storage_dtype
from ..tiling import power_of_2
from .eager import check_angles

TILE = 2048  # elements of half a row that a block holds


@triton.jit
def turn_rows_kernel(x_ptr, cos_ptr, sin_ptr, row_ptr, out_ptr, rows, turns, x_batch, x_head, x_row, i_batch, i_head,
                     HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_HALF: tl.constexpr,
                     BLOCK_REST: tl.constexpr, LINES: tl.constexpr, INDEXED: tl.constexpr):  # fmt: skip
    """Turn some rows of one head; the grid is (tiles of T, H, B).

    Args:
        x_ptr: Rows; any strides, the last dim contiguous.
        cos_ptr: (P, R) cosines, contiguous.
        sin_ptr: (P, R) sines, contiguous.
        row_ptr: Angles of each row; not read if INDEXED is 0.
        out_ptr: (B, H, T, K, D), contiguous.
        rows: T.
        turns: K.
        x_batch: Stride of the rows.
        x_head: Stride of the rows.
        x_row: Stride of the rows.
        i_batch: Stride of the index.
        i_head: Stride of the index, 0 if all heads share it.
        HEADS: H.
        DIM: D.
        WIDTH: R.
        BLOCK_HALF: Power of two, at least R / 2.
        BLOCK_REST: Power of two, at least D - R; 0 if that is none.
        LINES: L.
        INDEXED: Whether an index says which angles; else each row has its own.
    """
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    column, there = tl.arange(0, BLOCK_HALF), line < rows
    inside = there[:, None] & (column < WIDTH // 2)[None, :]
    source = x_ptr + batch * x_batch + head * x_head + line.to(tl.int64)[:, None] * x_row
    first = tl.load(source + column[None, :], mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + WIDTH // 2 + column[None, :], mask=inside, other=0.0).to(tl.float32)
    target = out_ptr + ((batch * HEADS + head) * rows + line.to(tl.int64))[:, None] * (turns * DIM)
    kind = out_ptr.dtype.element_ty
    for turn in range(turns):
        angle = batch * rows + line
        if INDEXED:
            place = row_ptr + batch * i_batch + head * i_head + line.to(tl.int64) * turns + turn
            angle = tl.load(place, mask=there, other=0).to(tl.int64)
        at = angle[:, None] * WIDTH + column[None, :]
        cos = tl.load(cos_ptr + at, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + at, mask=inside, other=0.0).to(tl.float32)
        to = target + turn * DIM
        tl.store(to + column[None, :], (first * cos - second * sin).to(kind), mask=inside)
        tl.store(to + WIDTH // 2 + column[None, :], (second * cos + first * sin).to(kind), mask=inside)
        if BLOCK_REST > 0:
            rest = tl.arange(0, BLOCK_REST)
            here = there[:, None] & (rest < DIM - WIDTH)[None, :]
            same = tl.load(source + WIDTH + rest[None, :], mask=here, other=0.0)
            tl.store(to + WIDTH + rest[None, :], same.to(kind), mask=here)


def turn_rows(
    x_BHTD: torch.Tensor, cos_PR: torch.Tensor, sin_PR: torch.Tensor, row_BXTK: torch.Tensor | None = None
) -> torch.Tensor:
    """Turn as the eager twin does.

    Args:
        x_BHTD: (B, H, T, D) rows; any strides, the last dim contiguous.
        cos_PR: (P, R) cosines, both halves alike.
        sin_PR: (P, R) sines, both halves alike.
        row_BXTK: (B, X, T, K) integers: which angles turn each row; if absent, each row has its own.

    Returns:
        (B, H, T, K, D) in the dtype of x.

    Raises:
        ValueError: As the eager twin, or if the last dim of the rows is not contiguous.
    """
    check_angles(x_BHTD, cos_PR, sin_PR, row_BXTK)
    check_contiguous_rows(x_BHTD)
    batch, heads, rows, dim = x_BHTD.shape
    width = cos_PR.shape[1]
    index = None if row_BXTK is None else row_BXTK.contiguous()
    turns = 1 if index is None else index.shape[3]
    strides = (0, 0) if index is None else (index.stride(0), index.stride(1) if index.shape[1] > 1 else 0)
    out = torch.empty(batch, heads, rows, turns, dim, dtype=storage_dtype(x_BHTD.dtype), device=x_BHTD.device)
    half, rest = max(1, power_of_2(width // 2)), power_of_2(dim - width) if dim > width else 0
    lines = max(1, TILE // max(half, rest))
    if out.numel():
        turn_rows_kernel[(triton.cdiv(rows, lines), heads, batch)](
            x_BHTD, cos_PR.contiguous(), sin_PR.contiguous(), cos_PR if index is None else index, out, rows, turns,
            *x_BHTD.stride()[:3], *strides, HEADS=heads, DIM=dim, WIDTH=width, BLOCK_HALF=half,
            BLOCK_REST=rest, LINES=lines, INDEXED=int(index is not None), num_warps=4,
        )  # fmt: skip
    return out.to(x_BHTD.dtype)
