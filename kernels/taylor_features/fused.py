"""Features of the second-order Taylor map in one launch: a projection on chip, and products of pairs of it.

Shape legend: B batch, G KV heads, N rows, D head dim, W width of the projection, F features, M rows of a block, I
components that are multiplied by all others at once.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2

ROWS, PART, AT_ONCE, WARPS = 16, 32, 16, 4  # rows of a block as few as a matrix instruction takes


@triton.jit
def taylor_features_kernel(x_ptr, projection_ptr, out_ptr, rows, x_batch, x_head, x_row, KV_HEADS: tl.constexpr,
                           DIM: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
                           FEATURES: tl.constexpr, M: tl.constexpr, AT_ONCE: tl.constexpr, PROJECTED: tl.constexpr,
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
        PART: Dims of a step of the product.
        BLOCK_WIDTH: Power of two, at least 16 and W.
        FEATURES: F.
        M: Rows of a block.
        AT_ONCE: I, at most BLOCK_WIDTH.
        PROJECTED: Whether there is a projection.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    row, column = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, BLOCK_WIDTH)
    there, narrow = row < rows, column < WIDTH
    x_at = x_ptr + batch * x_batch + head * x_head + row.to(tl.int64)[:, None] * x_row
    if PROJECTED:
        y = tl.zeros([M, BLOCK_WIDTH], tl.float32)
        for begin in range(0, DIM, PART):
            dim = begin + tl.arange(0, PART)
            x = tl.load(x_at + dim[None, :], mask=there[:, None] & (dim < DIM)[None, :], other=0.0).to(tl.float32)
            at = projection_ptr + (head * DIM + dim)[:, None] * WIDTH + column[None, :]
            projection = tl.load(at, mask=(dim < DIM)[:, None] & narrow[None, :], other=0.0)
            y = tl.dot(x, projection, y, input_precision="tf32x3")
    else:
        y = tl.load(x_at + column[None, :], mask=there[:, None] & narrow[None, :], other=0.0).to(tl.float32)
    out = out_ptr + (pair * rows + row) * FEATURES
    tl.store(out, tl.full([M], 1.0, tl.float32), mask=there)
    tl.store(out[:, None] + 1 + column[None, :], y, mask=there[:, None] & narrow[None, :])
    tl.debug_barrier()
    for begin in range(0, WIDTH, AT_ONCE):
        first = begin + tl.arange(0, AT_ONCE)
        if AT_ONCE == BLOCK_WIDTH:
            part = y
        else:  # what was just written
            part = tl.load(out[:, None] + 1 + first[None, :], mask=there[:, None] & (first < WIDTH)[None, :], other=0.0)
        factor = tl.where(first[:, None] == column[None, :], 0.7071067811865476, 1.0)
        place = 1 + WIDTH + (first * WIDTH - first * (first + 1) // 2)[:, None] + column[None, :]
        mask = (column[None, :] >= first[:, None]) & narrow[None, :]
        products = part[:, :, None] * y[:, None, :] * factor[None, :, :]
        tl.store(out[:, None, None] + place[None, :, :], products, mask=there[:, None, None] & mask[None, :, :])


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
    block = max(16, power_of_2(width))
    taylor_features_kernel[(triton.cdiv(rows, ROWS), batch * heads)](
        x_BGND, projection_GDW.float().contiguous(), out, rows, *x_BGND.stride()[:3], KV_HEADS=heads, DIM=dim,
        WIDTH=width, PART=PART, BLOCK_WIDTH=block, FEATURES=features, M=ROWS,
        AT_ONCE=min(AT_ONCE, block), PROJECTED=projection_GDW.shape[2] > 0, num_warps=WARPS, **overlap(out.device),
    )  # fmt: skip
    return out
