"""Features of the second-order Taylor map in one launch: a projection on chip, and one line of pairs after the other.

Shape legend: B batch, G KV heads, N rows, D head dim, W width of the projection, F features, M rows of a block.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2

ROWS = 16  # as few as a matrix instruction takes


@triton.jit
def taylor_features_kernel(x_ptr, projection_ptr, out_ptr, rows, x_batch, x_head, x_row, KV_HEADS: tl.constexpr,
                           DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
                           FEATURES: tl.constexpr, M: tl.constexpr, PROJECTED: tl.constexpr,
                           OVERLAP: tl.constexpr):  # fmt: skip
    """Expand some rows of one head; the grid is (N / M, B * G).

    Args:
        x_ptr: Rows.
        projection_ptr: (G, D, W), contiguous; not read if PROJECTED is 0.
        out_ptr: (B, G, N, F), contiguous.
        rows: N.
        x_batch: Stride of the rows.
        x_head: Stride of the rows.
        x_row: Stride of the rows.
        KV_HEADS: G.
        DIM: D.
        WIDTH: W.
        BLOCK_DIM: Power of two, at least 16 and D.
        BLOCK_WIDTH: Power of two, at least 16 and W.
        FEATURES: F.
        M: Rows of a block.
        PROJECTED: Whether there is a projection.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    row, dim, column = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_WIDTH)
    there = (row < rows)[:, None]
    x_at = x_ptr + batch * x_batch + head * x_head + row.to(tl.int64)[:, None] * x_row + dim[None, :]
    x = tl.load(x_at, mask=there & (dim < DIM)[None, :], other=0.0).to(tl.float32)
    if PROJECTED:
        inside = (dim < DIM)[:, None] & (column < WIDTH)[None, :]
        at = projection_ptr + (head * DIM + dim)[:, None] * WIDTH + column[None, :]
        y = tl.dot(x, tl.load(at, mask=inside, other=0.0), input_precision="tf32x3")
    else:
        y = x
    out = out_ptr + (pair * rows + row)[:, None] * FEATURES
    tl.store(out + (column * 0)[None, :], tl.full([M, BLOCK_WIDTH], 1.0, tl.float32),
             mask=there & (column == 0)[None, :])  # fmt: skip
    tl.store(out + 1 + column[None, :], y, mask=there & (column < WIDTH)[None, :])
    for first in range(WIDTH):
        own = tl.sum(tl.where(column[None, :] == first, y, 0.0), 1)
        factor = tl.where(column == first, 0.7071067811865476, 1.0)
        place = 1 + WIDTH + first * WIDTH - first * (first - 1) // 2 - first + column
        mask = there & ((column >= first) & (column < WIDTH))[None, :]
        tl.store(out + place[None, :], own[:, None] * y * factor[None, :], mask=mask)


def taylor_features(x_BGND: torch.Tensor, projection_GDW: torch.Tensor) -> torch.Tensor:
    """Expand as the eager twin does.

    Args:
        x_BGND: (B, G, N, D) rows; any strides, the last dim contiguous.
        projection_GDW: (G, D, W) float32 projection; (G, D, 0) for none, W = D.

    Returns:
        (B, G, N, F) float32.

    Raises:
        ValueError: If the last dim of the rows is not contiguous.
    """
    check_contiguous_rows(x_BGND)
    batch, heads, rows, dim = x_BGND.shape
    width = projection_GDW.shape[2] or dim
    features = 1 + width + width * (width + 1) // 2
    out = torch.empty(batch, heads, rows, features, dtype=torch.float32, device=x_BGND.device)
    taylor_features_kernel[(triton.cdiv(rows, ROWS), batch * heads)](
        x_BGND, projection_GDW.float().contiguous(), out, rows, *x_BGND.stride()[:3], KV_HEADS=heads, DIM=dim,
        WIDTH=width, BLOCK_DIM=max(16, power_of_2(dim)), BLOCK_WIDTH=max(16, power_of_2(width)), FEATURES=features,
        M=ROWS, PROJECTED=width != dim or projection_GDW.shape[2] > 0, num_warps=4, **overlap(out.device),
    )  # fmt: skip
    return out
