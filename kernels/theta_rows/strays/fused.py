"""Sets that hold too few rows or too many, or a head whose weights are below float32, and how many blocks mend each.

Shape legend: B batch, G KV heads, X segments, C blocks (chunks) of a set.
"""

import triton
import triton.language as tl


@triton.jit
def bounds_of(pair, there, count, lo_ptr, hi_ptr, least_ptr, most_ptr, rows, KV_HEADS: tl.constexpr):
    """Tell what sets see and want.

    Args:
        pair: Which sets.
        there: Which of these exist.
        count: Rows of each that rank above its threshold.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        least_ptr: (B,) int32.
        most_ptr: (B,) int32.
        rows: S.
        KV_HEADS: G.

    Returns:
        First visible row, one past the last, how many they are, and how many are wanted.
    """
    batch = pair // KV_HEADS
    lo = tl.load(lo_ptr + batch, mask=there, other=0)
    hi = tl.minimum(tl.load(hi_ptr + batch, mask=there, other=0), rows)
    many = tl.maximum(hi - lo, 0)
    wanted = tl.maximum(count, tl.load(least_ptr + batch, mask=there, other=0))
    wanted = tl.minimum(wanted, tl.load(most_ptr + batch, mask=there, other=0))
    return lo, hi, many, tl.minimum(wanted, many)


@triton.jit
def tallied(pair, there, tally_ptr, SEGMENTS: tl.constexpr, BLOCK_SEGMENTS: tl.constexpr):
    """Add up what the segments of sets have told.

    Args:
        pair: (N,) which sets.
        there: (N,) which of these exist.
        tally_ptr: (B, G, X) int32: twice the rows kept, and 1 where the weights of some head are below float32.
        SEGMENTS: X.
        BLOCK_SEGMENTS: Power of two, at least X.

    Returns:
        Rows kept, and whether some head may have no weights that float32 can tell.
    """
    part = tl.arange(0, BLOCK_SEGMENTS)
    known = there[:, None] & (part < SEGMENTS)[None, :]
    tally = tl.load(tally_ptr + pair[:, None] * SEGMENTS + part[None, :], mask=known, other=1)
    return tl.sum(tally >> 1, 1), tl.min(tally & 1, 1) > 0


@triton.jit
def strays_among(pair, there, tally_ptr, lo_ptr, hi_ptr, least_ptr, most_ptr, rows, KV_HEADS: tl.constexpr,
                 SEGMENTS: tl.constexpr, BLOCK_SEGMENTS: tl.constexpr):  # fmt: skip
    """Tell which of some sets are to be mended.

    Args:
        pair: (N,) which sets.
        there: (N,) which of these exist.
        tally_ptr: As `tallied` has it.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        least_ptr: (B,) int32.
        most_ptr: (B,) int32.
        rows: S.
        KV_HEADS: G.
        SEGMENTS: X.
        BLOCK_SEGMENTS: Power of two, at least X.

    Returns:
        (N,) int32, 0 or 1.
    """
    count, weak = tallied(pair, there, tally_ptr, SEGMENTS, BLOCK_SEGMENTS)
    _lo, _hi, many, wanted = bounds_of(pair, there, count, lo_ptr, hi_ptr, least_ptr, most_ptr, rows, KV_HEADS)
    return (there & ((wanted != count) | (weak & (many > 0)))).to(tl.int32)


@triton.jit
def share_alone(share_ptr, sums_ptr, sets, tally_ptr, lo_ptr, hi_ptr, least_ptr, most_ptr, rows,
                KV_HEADS: tl.constexpr, GROUP: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_HEADS: tl.constexpr,
                BLOCK_SEGMENTS: tl.constexpr):  # fmt: skip
    """Write the shares of some heads, if their sets are within bounds.

    Args:
        share_ptr: (B, H) float32 result.
        sums_ptr: (B * H, X, 2) float32.
        sets: B * G.
        tally_ptr: (B, G, X) int32, as `tallied` has it.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        least_ptr: (B,) int32.
        most_ptr: (B,) int32.
        rows: S.
        KV_HEADS: G.
        GROUP: J.
        SEGMENTS: X.
        BLOCK_HEADS: Heads of this block, a power of two.
        BLOCK_SEGMENTS: Power of two, at least X.
    """
    head, segment = tl.program_id(0) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_SEGMENTS)
    there = head < sets * GROUP
    stray = strays_among(head // GROUP, there, tally_ptr, lo_ptr, hi_ptr, least_ptr, most_ptr, rows, KV_HEADS, SEGMENTS,
                         BLOCK_SEGMENTS)  # fmt: skip
    known = there[:, None] & (segment < SEGMENTS)[None, :]
    place = sums_ptr + (head[:, None] * SEGMENTS + segment[None, :]) * 2
    whole = tl.sum(tl.load(place, mask=known, other=0.0), 1)
    chosen = tl.sum(tl.load(place + 1, mask=known, other=0.0), 1)
    tl.store(share_ptr + head, chosen / tl.where(whole == 0.0, 1.0, whole), mask=there & (stray == 0))


@triton.jit
def stray_of(nth, sets, tally_ptr, lo_ptr, hi_ptr, least_ptr, most_ptr, rows, KV_HEADS: tl.constexpr,
             SEGMENTS: tl.constexpr, BLOCK_SETS: tl.constexpr, BLOCK_SEGMENTS: tl.constexpr):  # fmt: skip
    """Count the sets that are to be mended, and find one of them.

    Args:
        nth: Which one, from 0.
        sets: B * G.
        tally_ptr: As `tallied` has it.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        least_ptr: (B,) int32.
        most_ptr: (B,) int32.
        rows: S.
        KV_HEADS: G.
        SEGMENTS: X.
        BLOCK_SETS: How many are looked at together.
        BLOCK_SEGMENTS: Power of two, at least X.

    Returns:
        How many there are, and the set.
    """
    before, found = nth * 0, nth * 0
    for first in range(0, sets, BLOCK_SETS):
        pair = first + tl.arange(0, BLOCK_SETS)
        stray = strays_among(pair, pair < sets, tally_ptr, lo_ptr, hi_ptr, least_ptr, most_ptr, rows, KV_HEADS,
                             SEGMENTS, BLOCK_SEGMENTS)  # fmt: skip
        found += tl.sum(tl.where((stray > 0) & (before + tl.cumsum(stray, 0) == nth + 1), pair, 0), 0)
        before += tl.sum(stray, 0)
    return before, found


@triton.jit
def shared_by(strays, slots, most_chunks, SEGMENTS: tl.constexpr):
    """Choose how many blocks mend each set: as many as the GPU holds at once, so that none begins late.

    Args:
        strays: Sets that are to be mended.
        slots: Blocks that the GPU holds at once, at least.
        most_chunks: The most blocks that may share a set.
        SEGMENTS: X.

    Returns:
        Blocks that share a segment, segments that share a block, one of which is 1, and C.
    """
    room = tl.maximum(tl.minimum(most_chunks, slots // tl.maximum(strays, 1)), 1)
    parts, span = tl.maximum(room // SEGMENTS, 1), tl.cdiv(SEGMENTS, tl.minimum(room, SEGMENTS))
    return parts, span, parts * tl.cdiv(SEGMENTS, span)
