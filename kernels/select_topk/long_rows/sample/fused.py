"""Two scores between which the k-th of a long row lies, from a sample of the row.

Of a sample of m scores, those above the k-th number m k / S, give or take sqrt(m p (1 - p)), p = k / S, whatever the
scores are. The bounds are searched where so many more, and so many fewer, of the sample lie above.

Shape legend: none; the sample has one shape, everything else is a scalar.
"""

import triton
import triton.language as tl

from ...search.fused import BEYOND, LEAST, between, middle_of, normal_quantile, ordered_key, score_of

# Deviations of the count: beyond them lies one row in 150,000, if the rows of the sample do not resemble each other.
SPREAD = tl.constexpr(4.5)


@triton.jit
def bounds_from_sample(sample, part, SAMPLE: tl.constexpr):
    """Find two keys, the lower of which the k-th almost certainly reaches and the upper of which it does not.

    Args:
        sample: Scores; what cannot be chosen is -inf or NaN.
        part: k / S, above 0, at most 1.
        SAMPLE: How many scores.

    Returns:
        The keys; `LEAST` and `BEYOND` where the sample does not reach so far.
    """
    usable = sample > float("-inf")
    able = tl.sum(usable.to(tl.int32), 0)
    many = tl.maximum(able, 1)
    seen = tl.where(usable, sample, 0.0)
    mean = tl.sum(seen, 0) / many
    deviation = tl.sqrt(tl.maximum(tl.sum(seen * seen, 0) / many - mean * mean, 0.0))
    bottom = ordered_key(tl.min(tl.where(usable, sample, float("inf")), 0))
    top = ordered_key(tl.max(tl.where(usable, sample, float("-inf")), 0)) + 1
    rank = part * SAMPLE
    slack = SPREAD * tl.sqrt(rank * (1.0 - part)) + 1.0
    # How many of the sample must reach each bound: between least and most. Where the sample has not so many, all do.
    a_least, a_most = rank + slack, rank + 1.7 * slack
    b_least, b_most = rank - 1.7 * slack, rank - slack
    a_lo, a_hi, a_above, a_below = bottom, top, able, able * 0
    b_lo, b_hi, b_above, b_below = bottom, top, able, able * 0
    a_open, b_open = able > a_most, (b_least > 0.0) & (able > b_most)
    a_guess = first_guess(a_least, a_most, mean, deviation, many, a_lo, a_hi)
    b_guess = first_guess(b_least, b_most, mean, deviation, many, b_lo, b_hi)
    while a_open | b_open:
        a_at, b_at = sample >= score_of(a_guess), sample >= score_of(b_guess)
        counts = tl.sum(a_at.to(tl.int32) + (b_at.to(tl.int32) << 16), 0)
        a_lo, a_hi, a_above, a_below, a_guess, a_open = step(
            a_lo, a_hi, a_above, a_below, a_guess, counts & 0xFFFF, a_least, a_most, a_open
        )
        b_lo, b_hi, b_above, b_below, b_guess, b_open = step(
            b_lo, b_hi, b_above, b_below, b_guess, counts >> 16, b_least, b_most, b_open
        )
    low = tl.where(able > a_most, a_lo, LEAST)
    high = tl.where(b_least > 0.0, tl.where(able > b_most, b_hi, bottom), BEYOND)
    return low, high


@triton.jit
def first_guess(least, most, mean, deviation, many, lo, hi):
    """Guess a key as if scores were normal.

    Args:
        least: How many must reach it.
        most: How many may.
        mean: Of the scores.
        deviation: Of the scores.
        many: How many they are.
        lo: Key below.
        hi: Key above.

    Returns:
        The key.
    """
    upper = tl.minimum(tl.maximum(0.5 * (least + most) / many, 0.001), 0.999)
    return between(mean + deviation * normal_quantile(upper), lo, hi, middle_of(lo, hi))


@triton.jit
def step(lo, hi, above, below, guess, count, least, most, is_open):
    """Narrow the range of one bound, and guess anew.

    Args:
        lo: Key that more than `most` reach.
        hi: Key that fewer than `least` reach.
        above: Scores that reach lo.
        below: Scores that reach hi.
        guess: Key between them.
        count: Scores that reach it.
        least: How many must reach the bound.
        most: How many may.
        is_open: Whether the bound is still searched.

    Returns:
        lo, hi, above, below, the next guess, and whether the search goes on. Both are the bound once it is found.
    """
    field = above - below
    many, few = is_open & (count > most), is_open & (count < least)
    found = is_open & (count <= most) & (count >= least)
    lo, above = tl.where(many | found, guess, lo), tl.where(many, count, above)
    hi, below = tl.where(few | found, guess, hi), tl.where(few, count, below)
    left = tl.maximum(above - below, 1)
    middle = middle_of(lo, hi)
    lo_score, hi_score = score_of(lo), score_of(hi)
    aimed = lo_score + (hi_score - lo_score) * (above - 0.5 * (least + most)) / left
    aimed = tl.where(left * 2 > field, float("nan"), aimed)
    # Of equal scores more reach one key than may, and fewer than must reach the next: the range then ends.
    return lo, hi, above, below, between(aimed, lo, hi, middle), is_open & (found == 0) & (lo + 1 < hi)
