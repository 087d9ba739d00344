"""The end of a search among few scores: once each thread has no more than two that are still in question.

A step over all scores of a block of 32768 is 340 instructions of each warp, and half of the steps are about a handful
of scores. (Measured, 32832 maxima over four heads, K = S/4: 2.6 steps in the mean and 5 at worst are over all scores,
3.0 and 12 among few.)

Shape legend: C chunks, T threads of a block, F = 4 neighbours that a thread holds.
"""

import triton
import triton.language as tl

from ..search.fused import NEIGHBOURS, score_of


@triton.jit
def nearest(score, low, high, THREADS: tl.constexpr):
    """Find how far the bits of each thread's scores lie from two bounds, at least.

    Args:
        score: (C * T * F,) scores.
        low: Bits of the lower bound, uint32.
        high: Bits of the upper bound.
        THREADS: T.

    Returns:
        (T,) the least distance above the lower bound, and below the upper; what is beyond a bound is very far.
    """
    CHUNKS: tl.constexpr = score.shape[0] // (THREADS * NEIGHBOURS)
    bits = tl.reshape(score.to(tl.uint32, bitcast=True), [CHUNKS, THREADS, NEIGHBOURS])
    return tl.min(tl.min(bits - low, 2), 0), tl.min(tl.min(high - bits, 2), 0)


@triton.jit
def picked(score, rest, lo, hi, number, REST: tl.constexpr, THREADS: tl.constexpr):
    """Pick the scores between two keys of one sign, two of each thread.

    Floats of one sign are ordered as their bits are, so the first and the last of a thread lie nearest to the bounds.

    Args:
        score: Scores.
        rest: More of them, if REST.
        lo: The lower key, which counts.
        hi: The upper key, which does not.
        number: (T,) how many lie between them.
        REST: Whether there are more.
        THREADS: T.

    Returns:
        (2 T,) scores, -inf where there are none.
    """
    one, other = score_of(lo).to(tl.uint32, bitcast=True), score_of(hi - 1).to(tl.uint32, bitcast=True)
    low, high = tl.minimum(one, other), tl.maximum(one, other)
    above, under = nearest(score, low, high, THREADS)
    if REST:
        more_above, more_under = nearest(rest, low, high, THREADS)
        above, under = tl.minimum(above, more_above), tl.minimum(under, more_under)
    first = tl.where(number > 0, (low + above).to(tl.float32, bitcast=True), float("-inf"))
    last = tl.where(number > 1, (high - under).to(tl.float32, bitcast=True), float("-inf"))
    return tl.reshape(tl.join(first, last), [2 * THREADS])
