"""A search that counts at four keys a step, for blocks that wait for more than their own arithmetic.

Two keys lie close to where the k-th score should be, two further out; all allow for scores that are not normal. In a
simulation with K = S/4, normal scores and maxima over 4 or 8 take three to four steps. A block that holds a row in
registers gains nothing by it: there two keys a step, and a step or two more, are faster.

Shape legend: none; everything here is a scalar, or has one shape.
"""

import triton
import triton.language as tl

from ..search.fused import BEYOND, between, middle_of, normal_quantile, score_of

# What guesses allow for: scores that are not normal, a density that is not even, and how far the inner two lie.
SKEWED, CURVED, INNER = tl.constexpr(0.2), tl.constexpr(0.1), tl.constexpr(0.25)


@triton.jit
def four_first(mean, deviation, many, k, skew=0.0):
    """Guess four scores around the k-th, as if scores were nearly normal.

    Args:
        mean: Of the scores.
        deviation: Of the scores.
        many: How many they are.
        k: Scores wanted.
        skew: Of the scores; 0 if it is not known.

    Returns:
        The guesses, in order: two where it should lie, two that hold it even if scores are somewhat skewed.
    """
    part = (k - 0.5) / many
    middle = normal_quantile(part)
    density = tl.exp2(middle * middle * -0.7213475) * 0.3989423
    spread = part * (1.0 - part)
    middle += (middle * middle - 1.0) * skew / 6.0
    margin = deviation * (1.5 * tl.sqrt(spread / many) + SKEWED * spread) / density
    centre, inner = mean + deviation * middle, INNER * margin
    return centre - margin, centre - inner, centre + inner, centre + margin


@triton.jit
def four_next(lo, hi, lo_count, hi_count, k, slow):
    """Guess four keys between lo and hi, around where k keys should be left.

    Args:
        lo: Key with at least k keys at or above it.
        hi: Key with fewer than k.
        lo_count: Keys at or above lo.
        hi_count: Keys at or above hi.
        k: Keys wanted.
        slow: Whether the last step did little: one guess then halves the range.

    Returns:
        The keys.
    """
    middle = middle_of(lo, hi)
    field = (lo_count - hi_count).to(tl.float32)
    part = (lo_count - k + 0.5) / field
    spread = part * (1.0 - part)
    lo_score, hi_score = score_of(lo), score_of(hi)
    width = hi_score - lo_score
    centre = lo_score + width * part
    margin = width * (0.7 * tl.sqrt(spread / field) + 0.5 / field + CURVED * spread)
    inner = INNER * margin
    first, second = between(centre - margin, lo, hi, middle), between(centre - inner, lo, hi, middle)
    third, fourth = between(centre + inner, lo, hi, middle), between(centre + margin, lo, hi, middle)
    return first, tl.where(slow, middle, second), third, fourth


@triton.jit
def four_beyond(lo, hi, reach, slow):
    """Guess four keys on the open side of a range of which only one end was counted at.

    Args:
        lo: Key below, or the least there is.
        hi: Key above, or the one beyond all.
        reach: How far from the end that was counted at the k-th score may lie.
        slow: Whether the last step did little: one guess then halves the range.

    Returns:
        The keys, in no order.
    """
    middle = middle_of(lo, hi)
    upwards = hi == BEYOND
    end, far = score_of(tl.where(upwards, lo, hi)), tl.where(upwards, reach, 0.0 - reach)
    first, second = between(end + far * 0.5, lo, hi, middle), between(end + far, lo, hi, middle)
    third, fourth = between(end + far * 2.0, lo, hi, middle), between(end + far * 8.0, lo, hi, middle)
    return first, second, third, tl.where(slow, middle, fourth)


@triton.jit
def narrowed(lo, lo_count, hi, hi_count, key, count, k):
    """Narrow a range by what was counted at one key.

    Args:
        lo: Key with at least k keys at or above it.
        lo_count: Keys at or above lo.
        hi: Key with fewer than k.
        hi_count: Keys at or above hi.
        key: Where was counted.
        count: Keys at or above it.
        k: Keys wanted.

    Returns:
        lo, its count, hi and its count.
    """
    up, down = (count >= k) & (key > lo), (count < k) & (key < hi)
    return (
        tl.where(up, key, lo), tl.where(up, count, lo_count),
        tl.where(down, key, hi), tl.where(down, count, hi_count),
    )  # fmt: skip


@triton.jit
def counted_at_four(score, first, second, third, fourth):
    """Count the scores that reach four keys, in one sum over the block.

    Args:
        score: Fewer than 65536.
        first: A key.
        second: A key.
        third: A key.
        fourth: A key.

    Returns:
        The counts in two numbers, 16 bits each, the first of two in the lower.
    """
    lower = (score >= score_of(first)).to(tl.int32) + ((score >= score_of(second)).to(tl.int32) << 16)
    upper = (score >= score_of(third)).to(tl.int32) + ((score >= score_of(fourth)).to(tl.int32) << 16)
    return tl.split(tl.sum(tl.join(lower, upper), 0))


@triton.jit
def moments(score):
    """Describe scores by numbers that those of several parts can be put together from, in one reduction.

    Args:
        score: Scores; what cannot be chosen is -inf or NaN.

    Returns:
        How many can be chosen, their sum, and their sum of squares.
    """
    # NaN compares false everywhere: such a row is never counted, and never chosen.
    usable = score > float("-inf")
    seen = tl.where(usable, score, 0.0)
    # A count below 2^24 is exact in float32.
    ends, parts = tl.join(usable.to(tl.float32), seen * seen), tl.join(seen, seen)
    counts, sums = tl.split(tl.sum(tl.join(ends, parts), 0))
    able, squares = tl.split(counts)
    total, _ = tl.split(sums)
    return able.to(tl.int32), total, squares
