"""Tiles whose rows are the query heads of a KV head, token by token, so that K and V are read once for the group.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows, M tokens of a tile, JP = J padded to a power
of two, L = M * JP lines of a tile, N keys of a tile, R = M or L rows of ranks.
"""

import triton
import triton.language as tl


@triton.jit
def load_lines(base, begin, new, head_stride, row_stride, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr,
               JP: tl.constexpr, GROUP: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Load the lines of a tile.

    Args:
        base: Pointer to the group's first head, row 0.
        begin: First token of the tile.
        new: T.
        head_stride: Stride of the heads.
        row_stride: Stride of the rows.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Tokens.
        JP: Lines of a token.
        GROUP: J.
        UPCAST: Cast to float32 after the load.

    Returns:
        (L, BLOCK_DIM), zeros where no query is.
    """
    line, column = tl.arange(0, M * JP), tl.arange(0, BLOCK_DIM)
    there = (begin + line // JP < new) & (line % JP < GROUP)
    place = (line % JP).to(tl.int64) * head_stride + (begin + line // JP).to(tl.int64) * row_stride
    mask = there[:, None] & (column < DIM)[None, :]
    tile = tl.load(base + place[:, None] + column[None, :], mask=mask, other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_keys(base, key, end, row_stride, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, N: tl.constexpr,
              UPCAST: tl.constexpr):  # fmt: skip
    """Load keys or values.

    Args:
        base: Pointer to row 0 of a head.
        key: First row.
        end: One past the last row that may be read.
        row_stride: Stride of the rows.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        N: Rows.
        UPCAST: Cast to float32 after the load.

    Returns:
        (N, BLOCK_DIM), zeros beyond the end.
    """
    at, column = tl.arange(0, N), tl.arange(0, BLOCK_DIM)
    place = base + tl.cast(key, tl.int64) * row_stride + at[:, None] * row_stride + column[None, :]
    tile = tl.load(place, mask=(key + at < end)[:, None] & (column < DIM)[None, :], other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def ranks_of(score, GROUP: tl.constexpr, M: tl.constexpr, JP: tl.constexpr, N: tl.constexpr, SHARED: tl.constexpr):
    """Rank keys by the largest score over the group, or by each head's own.

    Args:
        score: (L, N) scores.
        GROUP: J.
        M: Tokens.
        JP: Lines of a token.
        N: Keys.
        SHARED: Whether the group ranks together.

    Returns:
        (M, N) if the group ranks together, else (L, N).
    """
    if SHARED:
        member = tl.arange(0, JP)[None, :, None]
        rank = tl.max(tl.where(member < GROUP, tl.reshape(score, (M, JP, N)), float("-inf")), 1)
    else:
        rank = score
    return rank


@triton.jit
def place_of_rows(pair, begin, new, GROUP: tl.constexpr, M: tl.constexpr, JP: tl.constexpr, SHARED: tl.constexpr):
    """Find where the rows of ranks are stored in (B, sets, T).

    Args:
        pair: Sequence and KV head, counted together.
        begin: First token of the tile.
        new: T.
        GROUP: J.
        M: Tokens.
        JP: Lines of a token.
        SHARED: Whether the group ranks together.

    Returns:
        (R,) places, whether each exists, and its token.
    """
    if SHARED:
        token = begin + tl.arange(0, M)
        place, there = pair.to(tl.int64) * new + token, token < new
    else:
        member = tl.arange(0, M * JP) % JP
        token = begin + tl.arange(0, M * JP) // JP
        place, there = (pair.to(tl.int64) * GROUP + member) * new + token, (token < new) & (member < GROUP)
    return place, there, token
