"""Features of the second-order Taylor map in one launch: a projection on chip, two components of it for each feature.

Shape legend: B batch, G KV heads, N rows, D head dim, W width of the projection, F features, M rows of a block.
"""

import functools

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2

ROWS, FEATURES = 16, 256  # rows of a block as few as a matrix instruction takes, and features at once
MANY, ALIGNED = 64, 16  # rows of which each begins at a multiple of so many features


@triton.jit
def taylor_features_kernel(x_ptr, projection_ptr, first_ptr, second_ptr, out_ptr, rows, x_batch, x_head, x_row,
                           KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_DIM: tl.constexpr,
                           BLOCK_WIDTH: tl.constexpr, FEATURES: tl.constexpr, APART: tl.constexpr, M: tl.constexpr,
                           TILE: tl.constexpr, PROJECTED: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Expand some rows of one head; the grid is (N / M, B * G).

    Args:
        x_ptr: Rows.
        projection_ptr: (G, D, W), contiguous; not read if PROJECTED is 0.
        first_ptr: (F,) component that each feature takes; W stands for 1.
        second_ptr: (F,) the other one.
        out_ptr: (B, G, N, APART), contiguous; what lies behind F is written, too, and means nothing.
        rows: N.
        x_batch: Stride of the rows.
        x_head: Stride of the rows.
        x_row: Stride of the rows.
        KV_HEADS: G.
        DIM: D.
        WIDTH: W.
        BLOCK_DIM: Power of two, at least 16 and D.
        BLOCK_WIDTH: Power of two, at least 16 and W + 1.
        FEATURES: F.
        APART: From one row of features to the next, at least F.
        M: Rows of a block.
        TILE: Features at once.
        PROJECTED: Whether there is a projection.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    row, column, dim = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, BLOCK_WIDTH), tl.arange(0, BLOCK_DIM)
    there, narrow = (row < rows)[:, None], (column < WIDTH)[None, :]
    x_at = x_ptr + batch * x_batch + head * x_head + row.to(tl.int64)[:, None] * x_row
    if PROJECTED:
        x = tl.load(x_at + dim[None, :], mask=there & (dim < DIM)[None, :], other=0.0).to(tl.float32)
        at = projection_ptr + head * DIM * WIDTH + dim[:, None] * WIDTH + column[None, :]
        projection = tl.load(at, mask=(dim < DIM)[:, None] & narrow, other=0.0)
        y = tl.dot(x, projection, input_precision="tf32x3")
    else:
        y = tl.load(x_at + column[None, :], mask=there & narrow, other=0.0).to(tl.float32)
    y = tl.where((column == WIDTH)[None, :], 1.0, y)
    out = out_ptr + (pair * rows + row)[:, None] * APART
    for tile in range(0, APART, TILE):
        feature = tile + tl.arange(0, TILE)
        inside = feature < FEATURES
        first = tl.load(first_ptr + feature, mask=inside, other=0)
        second = tl.load(second_ptr + feature, mask=inside, other=0)
        one = tl.gather(y, tl.broadcast_to(first[None, :], M, TILE), 1)
        two = tl.gather(y, tl.broadcast_to(second[None, :], M, TILE), 1)
        factor = tl.where((first == second) & (first < WIDTH), 0.7071067811865476, 1.0)
        tl.store(out + feature[None, :], one * two * factor[None, :], mask=there & (feature < APART)[None, :])


@functools.cache
def factors_of(width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """List the two components that each feature is the product of.

    Args:
        width: W.
        device: Where the lists lie.

    Returns:
        (F,) int32 each; W stands for 1.
    """
    first, second = torch.triu_indices(width, width)
    one, each = torch.tensor([width]), torch.arange(width)
    lists = (torch.cat([one, each, first]), torch.cat([one, one.expand(width), second]))
    return lists[0].int().to(device), lists[1].int().to(device)


def taylor_features(x_BGND: torch.Tensor, projection_GDW: torch.Tensor) -> torch.Tensor:
    """Expand as the eager twin does.

    Args:
        x_BGND: (B, G, N, D) rows; any strides, the last dim contiguous.
        projection_GDW: (G, D, W) float32 projection; (G, D, 0) for none, W = D.

    Returns:
        (B, G, N, F) float32; of many rows each begins at a multiple of 64 bytes, for those who read them in tiles.

    Raises:
        ValueError: If the last dim of the rows is not contiguous.
    """
    check_contiguous_rows(x_BGND)
    batch, heads, rows, dim = x_BGND.shape
    width = projection_GDW.shape[2] or dim
    features = 1 + width + width * (width + 1) // 2
    apart = features if rows < MANY else -(-features // ALIGNED) * ALIGNED
    out = torch.empty(batch, heads, rows, apart, dtype=torch.float32, device=x_BGND.device)
    taylor_features_kernel[(triton.cdiv(rows, ROWS), batch * heads)](
        x_BGND, projection_GDW.float().contiguous(), *factors_of(width, out.device), out, rows, *x_BGND.stride()[:3],
        KV_HEADS=heads, DIM=dim, WIDTH=width, BLOCK_DIM=max(16, power_of_2(dim)),
        BLOCK_WIDTH=max(16, power_of_2(width + 1)), FEATURES=features, APART=apart, M=ROWS,
        TILE=FEATURES, PROJECTED=projection_GDW.shape[2] > 0, num_warps=4, **overlap(out.device),
    )  # fmt: skip
    return out[..., :features]
