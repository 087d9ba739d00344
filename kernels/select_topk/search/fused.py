"""The search for the k-th best score: keys that count as scores do, and guesses of where it lies.

Shape legend: none; everything here is a scalar, or has one shape.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**31))
# The keys of the least finite score, and the one after that of +inf, which no score reaches.
LEAST = tl.constexpr(-(2**31) + 0x800000)
BEYOND = tl.constexpr(0x7F800001)
# What guesses allow for: scores that are not normal, a density that is not even, and how far the inner two lie.
SKEWED, CURVED, INNER = tl.constexpr(0.2), tl.constexpr(0.1), tl.constexpr(0.25)


@triton.jit
def ordered_key(score):
    """Map float32 to int32 of the same order; what can never be chosen becomes the lowest integer.

    Args:
        score: Any float32.

    Returns:
        The keys.
    """
    bits = score.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    # The two zeros are equal scores, so they must be equal keys.
    key = tl.where(score == 0.0, 0, key)
    return tl.where(score > float("-inf"), key, LOWEST)


@triton.jit
def middle_of(lo, hi):
    """Find the mean of two integers whose sum may overflow.

    Args:
        lo: One.
        hi: The other.

    Returns:
        The mean, rounded down.
    """
    return (lo & hi) + ((lo ^ hi) >> 1)


@triton.jit
def score_of(key):
    """Undo `ordered_key`.

    Args:
        key: A key, int32.

    Returns:
        Its score.
    """
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def normal_quantile(upper):
    """Find above which value a normal variable lies with a given probability, to 0.005.

    Args:
        upper: The probability, between 0 and 1.

    Returns:
        The value, in standard deviations (Abramowitz and Stegun 26.2.23).
    """
    tail = tl.minimum(upper, 1.0 - upper)
    t = tl.sqrt(tl.log2(tail) * -1.3862944)
    value = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
    return tl.where(upper > 0.5, 0.0 - value, value)


@triton.jit
def first_guesses(mean, deviation, many, k):
    """Guess scores below and above the k-th, as if scores were normal.

    Args:
        mean: Of the scores.
        deviation: Of the scores.
        many: How many they are.
        k: Scores wanted.

    Returns:
        The two guesses.
    """
    part = (k - 0.5) / many
    middle = normal_quantile(part)
    density = tl.exp2(middle * middle * -0.7213475) * 0.3989423
    margin = 1.5 * tl.sqrt(part * (1.0 - part) / many) / density
    return mean + deviation * (middle - margin), mean + deviation * (middle + margin)


@triton.jit
def between(score, lo, hi, middle):
    """Make a guess a key strictly between two others.

    Args:
        score: The guess.
        lo: Key below.
        hi: Key above.
        middle: What is taken instead if the guess lies elsewhere, or is NaN.

    Returns:
        The key.
    """
    key = ordered_key(score)
    return tl.where((key > lo) & (key < hi), key, middle)


@triton.jit
def next_guesses(lo, hi, lo_count, hi_count, k, slow):
    """Guess two keys between lo and hi, on both sides of where k keys should be left.

    Args:
        lo: Key with at least k keys at or above it.
        hi: Key with fewer than k.
        lo_count: Keys at or above lo.
        hi_count: Keys at or above hi.
        k: Keys wanted.
        slow: Whether the last step did little: one guess then halves the range.

    Returns:
        The two keys, in order.
    """
    middle = middle_of(lo, hi)
    field = (lo_count - hi_count).to(tl.float32)
    part = (lo_count - k + 0.5) / field
    margin = tl.where(slow, 0.0, 0.7 * tl.sqrt(part * (1.0 - part) / field) + 0.5 / field)
    lo_score, hi_score = score_of(lo), score_of(hi)
    first = between(lo_score + (hi_score - lo_score) * (part - margin), lo, hi, middle)
    second = between(lo_score + (hi_score - lo_score) * (part + margin), lo, hi, middle)
    second = tl.where(slow, middle, second)
    return tl.minimum(first, second), tl.maximum(first, second)


@triton.jit
def shrink(lo, lo_count, hi, hi_count, first, first_count, second, second_count, k):
    """Narrow a range by what was counted at two guesses.

    Args:
        lo: Key with at least k keys at or above it.
        lo_count: Keys at or above lo.
        hi: Key with fewer than k.
        hi_count: Keys at or above hi.
        first: The lower guess.
        first_count: Keys at or above it.
        second: The upper guess.
        second_count: Keys at or above it.
        k: Keys wanted.

    Returns:
        lo, its count, hi and its count.
    """
    new_hi = tl.where(first_count < k, first, tl.where(second_count < k, second, hi))
    new_hi_count = tl.where(first_count < k, first_count, tl.where(second_count < k, second_count, hi_count))
    new_lo = tl.where(second_count >= k, second, tl.where(first_count >= k, first, lo))
    new_lo_count = tl.where(second_count >= k, second_count, tl.where(first_count >= k, first_count, lo_count))
    return new_lo, new_lo_count, new_hi, new_hi_count


@triton.jit
def four_first(mean, deviation, many, k):
    """Guess four scores around the k-th, as if scores were nearly normal.

    Args:
        mean: Of the scores.
        deviation: Of the scores.
        many: How many they are.
        k: Scores wanted.

    Returns:
        The guesses, in order: two where it should lie, two that hold it even if scores are somewhat skewed.
    """
    part = (k - 0.5) / many
    middle = normal_quantile(part)
    density = tl.exp2(middle * middle * -0.7213475) * 0.3989423
    spread = part * (1.0 - part)
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
    """Describe scores by numbers that those of several parts can be put together from, in two reductions.

    Args:
        score: Scores; what cannot be chosen is -inf or NaN.

    Returns:
        How many can be chosen, their sum, their sum of squares, the least and the largest.
    """
    # NaN compares false everywhere: such a row is never counted, and never chosen.
    usable = score > float("-inf")
    seen = tl.where(usable, score, 0.0)
    # A count below 2^24 is exact in float32.
    ends, parts = tl.join(usable.to(tl.float32), seen * seen), tl.join(seen, seen)
    counts, sums = tl.split(tl.sum(tl.join(ends, parts), 0))
    able, squares = tl.split(counts)
    total, _ = tl.split(sums)
    none = float("-inf")
    bounds = tl.max(tl.join(tl.where(usable, score, none), tl.where(usable, 0.0 - score, none)), 0)
    largest, least = tl.split(bounds)
    return able.to(tl.int32), total, squares, 0.0 - least, largest
