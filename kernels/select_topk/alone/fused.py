"""The search for the k-th best score of a set by one block, which holds all of its scores in registers.

Shape legend: none; everything here is a scalar, or has one shape.
"""

import triton
import triton.language as tl

from ..few.fused import picked
from ..search.fused import (
    between,
    counted,
    first_guesses,
    middle_of,
    next_guesses,
    ordered_key,
    score_of,
    shrink,
)

# Scores in question from which on the search goes on among these alone, if no thread has more than two of them.
FEW = tl.constexpr(48)


@triton.jit
def search_alone(score, rest, k, able, sums, squares, least, largest, REST: tl.constexpr, THREADS: tl.constexpr):
    """Find the k-th best score of a set.

    Args:
        score: Scores.
        rest: More of them, if REST; fewer than 65536 altogether.
        k: Scores wanted, at most as many as can be chosen.
        able: How many can be chosen.
        sums: Their sum.
        squares: The sum of their squares.
        least: The least of them.
        largest: The largest of them.
        REST: Whether there are more.
        THREADS: Of the block, if the search ends among few scores; or 0.

    Returns:
        Two keys, the score of the first with at least k scores at or above it, that of the second with fewer, and these
        counts.
    """
    many = tl.maximum(able, 1)
    mean = sums / many
    deviation = tl.sqrt(tl.maximum(squares / many - mean * mean, 0.0))
    lo, hi, lo_count, hi_count = ordered_key(least), ordered_key(largest) + 1, able, able * 0
    middle = middle_of(lo, hi)
    first_score, second_score = first_guesses(mean, deviation, many, k)
    first, second = between(first_score, lo, hi, middle), between(second_score, lo, hi, middle)
    few, base = tl.full([max(2, 2 * THREADS)], float("-inf"), tl.float32), able * 0 - 1
    while (k > 0) & (lo_count != k) & (lo + 1 < hi):
        if (THREADS > 0) & (base >= 0):
            counts = counted(few, score_of(first), score_of(second)) + base + (base << 16)
        else:
            counts = counted(score, score_of(first), score_of(second))
            if REST:
                counts += counted(rest, score_of(first), score_of(second))
        field = lo_count - hi_count
        lo, lo_count, hi, hi_count = shrink(
            lo, lo_count, hi, hi_count, first, counts & 0xFFFF, second, (counts >> 16) & 0xFFFF, k
        )
        slow = (lo_count - hi_count) * 4 > field
        first, second = next_guesses(lo, hi, lo_count, hi_count, k, slow)
        if THREADS > 0:  # noqa: SIM102 - a constant, which leaves no branch
            if (base < 0) & (lo_count - hi_count <= FEW):
                few, found = picked(score, score_of(lo), score_of(hi), THREADS)
                # Not all are found where a thread has three, in the rest, or where the upper bound is beyond infinity.
                base = tl.where(found == lo_count - hi_count, hi_count, -1)
    return lo, hi, lo_count, hi_count
