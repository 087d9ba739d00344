"""Rows moved within their cache, tile after tile, without a second buffer.

Numbers of rows ascend, so a row's number less its place never falls from one place to the next. Rows that move up are
therefore the first ones, and are moved from the last of them to the first; rows that move down follow, and are moved
from the first to the last: nothing is overwritten before it was read. A block owns some columns of all rows of a head.
Up to three tensors that lose the same rows are moved by one launch.

Shape legend: B batch, G KV heads, S rows in the cache, D, W widths of a row, N = 1 or G sets of rows, K rows kept.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..overlap.fused import overlap, start_after_others
from ..tiling import multiprocessors, power_of_2
from .eager import check_same_rows

# Columns of a block at most and at least, and rows that it moves at once: of whole rows, of some columns.
COLUMNS, FEWEST, WHOLE, TILE = 128, 16, 64, 128


@triton.jit
def numbers_at(index_ptr, start, first, end, BLOCK: tl.constexpr):
    """Load the numbers of some places.

    Args:
        index_ptr: (K,) rows.
        start: First place.
        first: Places before it have no number.
        end: One past the last place that has one.
        BLOCK: Places of a tile.

    Returns:
        (BLOCK,) int64, -1 where there is none.
    """
    place = start + tl.arange(0, BLOCK)
    return tl.load(index_ptr + place, mask=(place >= first) & (place < end), other=-1)


@triton.jit
def rows_of(rows_ptr, source, column, stride, WIDTH: tl.constexpr):
    """Load some columns of rows.

    Args:
        rows_ptr: Pointer to row 0 of a head.
        source: (BLOCK,) numbers of rows, -1 for none.
        column: Columns of the block.
        stride: Stride of the rows.
        WIDTH: W.

    Returns:
        (BLOCK, columns).
    """
    there = (source >= 0)[:, None] & (column < WIDTH)[None, :]
    return tl.load(rows_ptr + source[:, None] * stride + column[None, :], mask=there, other=0.0)


@triton.jit
def move_run(rows_ptr, index_ptr, start, step, tiles, first, end, column, stride, WIDTH: tl.constexpr,
             BLOCK: tl.constexpr):  # fmt: skip
    """Move a run of tiles in an order in which nothing is overwritten that a later tile reads.

    To read a tile early is therefore safe, and two are on their way while one is written; a tile is written once every
    thread has read it and all tiles before it.

    Args:
        rows_ptr: Pointer to row 0 of a head.
        index_ptr: (K,) rows.
        start: First place of the first tile.
        step: Places from one tile to the next.
        tiles: How many.
        first: First place of the run.
        end: One past the last place of the run.
        column: Columns of the block.
        stride: Stride of the rows.
        WIDTH: W.
        BLOCK: Places of a tile.
    """
    source = numbers_at(index_ptr, start, first, end, BLOCK)
    after = numbers_at(index_ptr, start + step, first, end, BLOCK)
    moved = rows_of(rows_ptr, source, column, stride, WIDTH)
    for tile in range(tiles):
        here = start + tile * step
        later = numbers_at(index_ptr, here + 2 * step, first, end, BLOCK)
        moved_after = rows_of(rows_ptr, after, column, stride, WIDTH)
        tl.debug_barrier()
        place = (here + tl.arange(0, BLOCK)).to(tl.int64)
        there = (source >= 0)[:, None] & (column < WIDTH)[None, :]
        tl.store(rows_ptr + place[:, None] * stride + column[None, :], moved, mask=there)
        source, after, moved = after, later, moved_after


@triton.jit
def move_columns(rows_ptr, index_ptr, kept, up, part, batch, head, rows_batch, rows_head, rows_row,
                 WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_WIDTH: tl.constexpr):  # fmt: skip
    """Move some columns of the rows of one head of one tensor.

    Args:
        rows_ptr: The tensor, written.
        index_ptr: (K,) rows.
        kept: K.
        up: How many of them move up.
        part: Number of the block of columns.
        batch: Number of the sequence.
        head: Number of the head.
        rows_batch: Stride of the tensor.
        rows_head: Stride of the tensor.
        rows_row: Stride of the tensor.
        WIDTH: W.
        BLOCK: Rows of a tile.
        BLOCK_WIDTH: Columns of a block.
    """
    column = part * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    base = rows_ptr + batch * rows_batch + head * rows_head
    move_run(base, index_ptr, up - BLOCK, -BLOCK, tl.cdiv(up, BLOCK), 0, up, column, rows_row, WIDTH, BLOCK)
    move_run(base, index_ptr, up, BLOCK, tl.cdiv(kept - up, BLOCK), up, kept, column, rows_row, WIDTH, BLOCK)


@triton.jit
def keep_rows_kernel(k_ptr, v_ptr, more_ptr, index_ptr, kept, k_batch, k_head, k_row, v_batch, v_head, v_row,
                     more_batch, more_head, more_row, KV_HEADS: tl.constexpr, SETS: tl.constexpr, K_WIDTH: tl.constexpr,
                     V_WIDTH: tl.constexpr, MORE_WIDTH: tl.constexpr, BLOCK: tl.constexpr, K_BLOCK: tl.constexpr,
                     V_BLOCK: tl.constexpr, MORE_BLOCK: tl.constexpr, BLOCK_KEPT: tl.constexpr,
                     OVERLAP: tl.constexpr):  # fmt: skip
    """Move some columns of the rows of one head; the grid is (B * G, blocks of columns of all tensors).

    Args:
        k_ptr: The first tensor, written.
        v_ptr: The second, written.
        more_ptr: The third, written.
        index_ptr: (B, N, K) rows, contiguous.
        kept: K.
        k_batch: Stride of the first.
        k_head: Stride of the first.
        k_row: Stride of the first.
        v_batch: Stride of the second.
        v_head: Stride of the second.
        v_row: Stride of the second.
        more_batch: Stride of the third.
        more_head: Stride of the third.
        more_row: Stride of the third.
        KV_HEADS: G.
        SETS: N.
        K_WIDTH: W of the first.
        V_WIDTH: W of the second; 0 if there is none.
        MORE_WIDTH: W of the third; 0 if there is none.
        BLOCK: Rows of a tile.
        K_BLOCK: Columns of a block of the first.
        V_BLOCK: Columns of a block of the second.
        MORE_BLOCK: Columns of a block of the third.
        BLOCK_KEPT: Numbers that are looked at together.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, part = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    index = index_ptr + (batch * SETS + head % SETS) * kept
    many = tl.arange(0, BLOCK_KEPT)
    rising = tl.zeros([BLOCK_KEPT], tl.int32)
    for start in range(0, kept, BLOCK_KEPT):
        place = start + many
        source = tl.load(index + place, mask=place < kept, other=1 << 60)
        rising += (source < place).to(tl.int32)
    up = tl.sum(rising, 0)
    k_parts, v_parts = tl.cdiv(K_WIDTH, K_BLOCK), tl.cdiv(V_WIDTH, V_BLOCK)
    if part < k_parts:
        move_columns(k_ptr, index, kept, up, part, batch, head, k_batch, k_head, k_row, K_WIDTH, BLOCK, K_BLOCK)
    elif part < k_parts + v_parts:
        move_columns(v_ptr, index, kept, up, part - k_parts, batch, head, v_batch, v_head, v_row, V_WIDTH, BLOCK,
                     V_BLOCK)  # fmt: skip
    else:
        move_columns(more_ptr, index, kept, up, part - k_parts - v_parts, batch, head, more_batch, more_head, more_row,
                     MORE_WIDTH, BLOCK, MORE_BLOCK)  # fmt: skip


def columns_of(pairs: int, width: int, multiprocessor_count: int) -> int:
    """Choose the columns of a block: whole rows are moved fastest, but half of the SMs at the least must have a block.

    Args:
        pairs: Heads of all sequences.
        width: W.
        multiprocessor_count: SMs of the GPU.

    Returns:
        A power of two.
    """
    columns = min(COLUMNS, max(FEWEST, power_of_2(width)))
    while columns > FEWEST and 2 * pairs * triton.cdiv(width, columns) <= multiprocessor_count:
        columns //= 2
    return int(columns)


def keep_rows(
    k_BGSD: torch.Tensor, v_BGSD: torch.Tensor | None, more_BGSW: torch.Tensor | None, index_BNK: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """Move as the eager twin does, with no memory beside.

    Args:
        k_BGSD: (B, G, S, D), written; any strides, the last dim contiguous, as of all.
        v_BGSD: (B, G, S, D) of another D, or nothing, written.
        more_BGSW: (B, G, S, W), or nothing, written.
        index_BNK: (B, N, K) int64 rows, ascending, K at most S; -1, before all others, leaves what lies there.

    Returns:
        The same three.

    Raises:
        ValueError: If the last dim of a tensor is not contiguous, or one is of other texts, heads or rows.
    """
    parts = (k_BGSD, v_BGSD, more_BGSW)
    check_contiguous_rows(*(part for part in parts if part is not None))
    check_same_rows(*parts)
    batch, heads, device = k_BGSD.shape[0], k_BGSD.shape[1], k_BGSD.device
    sets, kept = index_BNK.shape[1:]
    widths = [0 if part is None else part.shape[3] for part in parts]
    blocks = [columns_of(batch * heads, width, multiprocessors(device)) for width in widths]
    there = [k_BGSD if part is None else part for part in parts]
    keep_rows_kernel[(batch * heads, sum(map(triton.cdiv, widths, blocks)))](
        *there, index_BNK.contiguous(), kept, *(stride for part in there for stride in part.stride()[:3]),
        KV_HEADS=heads, SETS=sets, K_WIDTH=widths[0], V_WIDTH=widths[1], MORE_WIDTH=widths[2],
        BLOCK=WHOLE if blocks[0] == COLUMNS else TILE, K_BLOCK=blocks[0], V_BLOCK=blocks[1], MORE_BLOCK=blocks[2],
        BLOCK_KEPT=min(1024, max(16, power_of_2(kept))), num_warps=8, **overlap(device),
    )  # fmt: skip
    return parts
