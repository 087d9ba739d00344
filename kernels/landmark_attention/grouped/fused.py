"""The grouped softmax of one tile, which forward and backward share.

Whatever the block, a tile holds a power of two of blocks, each padded to a power of two of columns: reductions within
a block then are reductions along one axis of the tile.

Shape legend: M query rows of a tile, N columns of a tile = NB blocks * PB columns, C rows of a block.
"""

import triton
import triton.language as tl


@triton.jit
def locate(NB: tl.constexpr, PB: tl.constexpr, C: tl.constexpr):
    """Find the rows of a tile's columns, counted from the tile's first row.

    Args:
        NB: Blocks of the tile.
        PB: Columns of a block, a power of two, at least C.
        C: Rows of a block.

    Returns:
        Whether a row stands in a column, and its row counted from the tile's first.
    """
    column = tl.arange(0, NB * PB)
    return column % PB < C, column // PB * C + column % PB


@triton.jit
def load_tile(base, row, row_stride, column, ok, MASKED: tl.constexpr, DIM: tl.constexpr, UPCAST: tl.constexpr):
    """Load rows of a tensor.

    Args:
        base: Pointer to row 0.
        row: (rows,) which rows.
        row_stride: Stride of the rows.
        column: (BLOCK_DIM,) columns.
        ok: (rows,) whether the row exists.
        MASKED: Whether any row or column may be missing.
        DIM: D.
        UPCAST: Cast to float32 after the load.

    Returns:
        (rows, BLOCK_DIM), zeros where nothing is.
    """
    place = base + row[:, None] * row_stride + column[None, :]
    tile = tl.load(place, mask=ok[:, None] & (column < DIM)[None, :], other=0.0) if MASKED else tl.load(place)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def block_softmax(score, scale_log2, M: tl.constexpr, NB: tl.constexpr, PB: tl.constexpr, C: tl.constexpr):
    """Take the softmax of each block by itself.

    Args:
        score: (M, N) products of queries and keys.
        scale_log2: Factor of the scores, times log2(e); positive.
        M: Query rows.
        NB: Blocks.
        PB: Columns of a block.
        C: Rows of a block, the last of which is its landmark.

    Returns:
        (M, NB, PB) weights before they are divided, zero where no regular row is; their sums (M, NB); the largest
        logits of regular rows (M, NB) and those of the landmarks (M, NB), in units of log2.
    """
    raw = tl.reshape(score, (M, NB, PB))
    place = tl.arange(0, PB)[None, None, :]
    landmark = tl.sum(tl.where(place == C - 1, raw, 0.0), 2) * scale_log2
    regular = tl.where(place < C - 1, raw, float("-inf"))
    top = tl.max(regular, 2) * scale_log2
    weight = tl.exp2(regular * scale_log2 - top[:, :, None])
    return weight, tl.sum(weight, 2), top, landmark


@triton.jit
def mixed_logits(score, scale_log2, row, own, tile_row, first_block, column_row, member, M: tl.constexpr,
                 NB: tl.constexpr, PB: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Give the logits of a tile in which some rows meet their own block.

    Args:
        score: (M, N) products of queries and keys.
        scale_log2: Factor of the scores, times log2(e); positive.
        row: (M,) rows of the queries, counted from the tensor's begin.
        own: (M,) own block of each, counted from the document's begin.
        tile_row: First row of the tile.
        first_block: First block of the tile, counted from the document's begin.
        column_row: (N,) rows of the columns, counted from the tile's first.
        member: (M,) whether the query is of the document.
        M: Query rows.
        NB: Blocks.
        PB: Columns of a block.
        C: Rows of a block.

    Returns:
        (M, NB, PB) logits of one softmax in units of log2, -inf where nothing is seen; (M, NB) whether the block is a
        past one.
    """
    _weight, total, top, landmark = block_softmax(score, scale_log2, M, NB, PB, C)
    block = first_block + tl.arange(0, NB)
    past = (block[None, :] < own[:, None]) & member[:, None]
    mine = (block[None, :] == own[:, None]) & member[:, None]
    bias = tl.where(past, landmark - top - tl.log2(total), 0.0)
    reached = tl.reshape((tile_row + column_row)[None, :] <= row[:, None], (M, NB, PB))
    place = tl.arange(0, PB)[None, None, :]
    seen = (past[:, :, None] | (mine[:, :, None] & reached)) & (place < C - 1)
    logit = tl.reshape(score, (M, NB, PB)) * scale_log2 + bias[:, :, None]
    return tl.where(seen, logit, float("-inf")), past
