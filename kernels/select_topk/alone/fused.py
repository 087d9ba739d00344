"""The search for the k-th best score of a set by one block, which holds all of its scores in registers.

Shape legend: T threads of a block, F = 4 neighbours that a thread holds.
"""

import triton
import triton.language as tl

from ..few.fused import picked
from ..line.fused import key_at
from ..sample.fused import GROWTH, next_two
from ..search.fused import (
    BEYOND,
    LEAST,
    NEIGHBOURS,
    both_counts,
    counted,
    middle_of,
    score_of,
    shrink,
)

# Scores in question from which on the search goes on among these alone, if no thread has more than two of them.
FEW = tl.constexpr(48)


@triton.jit
def guessed_again(lo, hi, lo_count, hi_count, field, before, per, k, BY_KEYS: tl.constexpr):
    """Make the next two guesses, after a step.

    Args:
        lo: As `next_two` has it.
        hi: As `next_two` has it.
        lo_count: Keys at or above lo.
        hi_count: Keys at or above hi.
        field: How many keys were in question before the step.
        before: Whether the step before it did little.
        per: As `next_two` has it.
        k: Keys wanted.
        BY_KEYS: As `place_of` has it.

    Returns:
        The two keys, in order; `per` for the next guesses, and whether this step did little.
    """
    # A step that missed what lies between its guesses did little; after two, the range of keys is halved.
    little = (lo_count - hi_count) * 4 > field
    slow = little & before
    first, second = next_two(lo, hi, lo_count, hi_count, k, per, slow, BY_KEYS)
    return first, second, tl.where((lo == LEAST) | (hi == BEYOND), per * GROWTH, per), little & (slow == 0)


@triton.jit
def search_alone(score, rest, k, usable, able, low, high, per, REST: tl.constexpr, THREADS: tl.constexpr,
                DIRECT: tl.constexpr, BY_KEYS: tl.constexpr):  # fmt: skip
    """Find the k-th best score of a set.

    Args:
        score: Scores, as many as four for each thread or a multiple.
        rest: More of them, if REST; fewer than 65536 altogether.
        k: Scores wanted, at most as many as can be chosen.
        usable: (T * F,) how many of each thread can be chosen.
        able: How many altogether.
        low: A guess below the k-th, on the line of guesses.
        high: One above.
        per: How far scores lie apart there.
        REST: Whether there are more.
        THREADS: Of the block.
        DIRECT: As `reaching` has it.
        BY_KEYS: As `place_of` has it.

    Returns:
        Two keys, the score of the first with at least k scores at or above it, that of the second with fewer, and these
        counts.
    """
    lo, hi, lo_count, hi_count = able * 0 + LEAST, able * 0 + BEYOND, able, able * 0
    middle = middle_of(lo, hi)
    one, other = key_at(low, lo, hi, middle, BY_KEYS), key_at(high, lo, hi, middle, BY_KEYS)
    first, second = tl.minimum(one, other), tl.maximum(one, other)
    few, base = tl.full([2 * THREADS], float("-inf"), tl.float32), able * 0 - 1
    before = able < 0
    reach_lo, reach_hi = usable, usable * 0
    while (base < 0) & (k > 0) & (lo_count != k) & (lo + 1 < hi):
        tally = both_counts(score, first, second, THREADS, DIRECT)
        if REST:
            tally += both_counts(rest, first, second, THREADS, DIRECT)
        counts, field = tl.sum(tally, 0), lo_count - hi_count
        lo, lo_count, hi, hi_count = shrink(
            lo, lo_count, hi, hi_count, first, counts & 0xFFFF, second, (counts >> 16) & 0xFFFF, k
        )
        reach_lo = tl.where(lo == second, (tally >> 16) & 0xFFFF, tl.where(lo == first, tally & 0xFFFF, reach_lo))
        reach_hi = tl.where(hi == first, tally & 0xFFFF, tl.where(hi == second, (tally >> 16) & 0xFFFF, reach_hi))
        first, second, per, before = guessed_again(lo, hi, lo_count, hi_count, field, before, per, k, BY_KEYS)
        one_sign = (lo > 0) | (hi < 0)
        if one_sign & (lo_count - hi_count <= FEW) & (lo_count != k):
            number = tl.sum(tl.reshape(reach_lo - reach_hi, [THREADS, NEIGHBOURS]), 1)
            few = picked(score, rest, lo, hi, number, REST, THREADS)
            # Where a thread has three, two are not all.
            base = tl.where(tl.max(number, 0) < 3, hi_count, -1)
    while (k > 0) & (lo_count != k) & (lo + 1 < hi):
        counts, field = counted(few, score_of(first), score_of(second)), lo_count - hi_count
        lo, lo_count, hi, hi_count = shrink(
            lo, lo_count, hi, hi_count, first, base + (counts & 0xFFFF), second, base + (counts >> 16), k
        )
        first, second, per, before = guessed_again(lo, hi, lo_count, hi_count, field, before, per, k, BY_KEYS)
    return lo, hi, lo_count, hi_count
