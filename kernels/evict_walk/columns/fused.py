"""Columns of the walks that look among few keys: the keys held when some rows begin, and those of the rows themselves.

Shape legend: B batch, H query heads, t query rows, S key rows, D head dim, N sets of rows, C most keys of a cache, W
columns, at least C + t, E query heads of a set, X most keys that are named.
"""

import triton
import triton.language as tl

from ..ahead.fused import LATE, NONE, weigh_again

INFINITE = tl.constexpr(0x7F800000)  # bits of the float
NEVER = tl.constexpr(0x7FFFFFFF)
STEPS = tl.constexpr(16)  # of a search over bits: eight of the exponent, eight of what follows
CLEARLY = tl.constexpr(1.0001)  # more than rounding
SURE = tl.constexpr(1e-9)  # of all weights, in float64: less of them left is summed anew


@triton.jit
def keys_of_columns(column, place_base, number_base, first, some, places, rows):
    """Tell which key each column is.

    Args:
        column: Some columns.
        place_base: Pointer to the C keys of a set.
        number_base: Pointer to its S token numbers.
        first: First new key.
        some: t.
        places: C.
        rows: S.

    Returns:
        Their keys, and the token numbers of these, LATE where no key is.
    """
    key = tl.load(place_base + column, mask=column < places, other=0)
    key = tl.where(column < places, key, first + column - places)
    there = (key < rows) & (column < places + some)
    number = tl.load(number_base + key, mask=there, other=-1)
    return key, tl.where(number < 0, LATE, number)


@triton.jit
def border_of(bits, NAMED: tl.constexpr):
    """Find a border below which there are nearly as many as may be named, and not more.

    Args:
        bits: (W,) marks as integers, which are ordered as they are.
        NAMED: X.

    Returns:
        The border, whose last bits are zeros.
    """
    border = tl.min(bits, 0) * 0
    for step in range(STEPS):
        higher = border + (1 << (30 - step))
        border = tl.where(tl.sum((bits < higher).to(tl.int32), 0) <= NAMED, higher, border)
    return border


@triton.jit
def shares_of_held(q_base, k_base, place_base, line, here, own, heads, some, first, places, q_head, k_head, k_row,
                   scale_log2, GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
                   LEAST: tl.constexpr):  # fmt: skip
    """Sum the shares of one row's weights that all columns held get, by their weights or, where these are lost, anew.

    Args:
        q_base: Pointer to the row of head 0 of its sequence.
        k_base: Pointer to key 0 of KV head 0.
        place_base: Pointer to the C keys of the set.
        line: Pointer to the row's weights of the set's first head.
        here: (W,) which columns the row holds.
        own: First head of the set.
        heads: E, or 0 for none.
        some: t.
        first: First new key.
        places: C.
        q_head: Stride of the queries.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        scale_log2: Factor of the scores, times log2(e).
        GROUP: Query heads of a KV head.
        DIM: D.
        WIDE: W.
        LEAST: Sum of the weights of a head below which some may be lost.

    Returns:
        (W,) shares, 0 where nothing is held.
    """
    column, held, added = tl.arange(0, WIDE), here.to(tl.float32), tl.zeros([WIDE], tl.float32)
    for one in range(heads):
        weight = tl.load(line + one * some * WIDE + column, mask=here, other=0.0)
        weighs = tl.sum(weight, 0)
        if weighs < LEAST:
            added += weigh_again(
                q_base, k_base, place_base, held, own + one, own + one + 1, first, places, q_head, k_head, k_row,
                scale_log2, GROUP, DIM, WIDE,
            )  # fmt: skip
        else:
            added += weight * (1.0 / weighs)
    return added


@triton.jit
def lowest_of(mark, column, able):
    """Find the key with the lowest mark, of equal ones the oldest.

    Marks are not negative, so their bits are ordered as they are. Which key it is, its column tells: the compiler may
    hold marks twice, summed in another order, and not equal.

    Args:
        mark: Marks of some columns.
        column: The columns.
        able: Which of them may leave.

    Returns:
        Bits of the mark and, in the lower half, the column; `NONE` if there is none.
    """
    order = (mark.to(tl.int32, bitcast=True).to(tl.int64) << 32) | column.to(tl.int64)
    return tl.min(tl.where(able, order, NONE), 0)
