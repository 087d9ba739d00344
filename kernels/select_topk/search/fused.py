"""The search for the k-th best score: keys that count as scores do, and guesses of where it lies.

Shape legend: T threads of a block, F = 4 neighbours that a thread holds; the rest are scalars, or have one shape.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**31))
# The keys of the least finite score, and the one after that of +inf, which no score reaches.
LEAST = tl.constexpr(-(2**31) + 0x800000)
BEYOND = tl.constexpr(0x7F800001)
# Rows that a lane holds side by side.
NEIGHBOURS = tl.constexpr(4)


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
def told(told_ptr, pair, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """Put together what the blocks that scored a set tell of its scores.

    Args:
        told_ptr: (B, N, PARTS, 4) float32: how many can be chosen, and the sums of their first three powers.
        pair: Which set.
        PARTS: Blocks.
        BLOCK_PARTS: Power of two, at least PARTS.

    Returns:
        How many, their mean, deviation and skewness.
    """
    part = tl.arange(0, BLOCK_PARTS)
    place, known = told_ptr + (pair * PARTS + part) * 4, part < PARTS
    able = tl.sum(tl.load(place, mask=known, other=0.0).to(tl.int32), 0)
    many = tl.maximum(able, 1).to(tl.float32)
    mean = tl.sum(tl.load(place + 1, mask=known, other=0.0), 0) / many
    square = tl.sum(tl.load(place + 2, mask=known, other=0.0), 0) / many
    cube = tl.sum(tl.load(place + 3, mask=known, other=0.0), 0) / many
    variance = tl.maximum(square - mean * mean, 0.0)
    deviation = tl.sqrt(variance)
    skew = (cube - 3.0 * mean * square + 2.0 * mean * mean * mean) / (variance * deviation)
    # Constant scores have none, and large ones none that float32 can tell.
    skew = tl.where((skew > -2.0) & (skew < 2.0), skew, 0.0)
    return able, mean, deviation, skew


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
def part_left(lo_count, hi_count, k, slow):
    """Tell which part of a range lies between its lower end and where k keys should be left, if keys lie evenly.

    Args:
        lo_count: Keys at or above the lower end.
        hi_count: Keys at or above the upper end.
        k: Keys wanted.
        slow: Whether the last step did little: there is no margin then.

    Returns:
        The part, and how much is to be allowed for on both sides of it.
    """
    field = (lo_count - hi_count).to(tl.float32)
    part = (lo_count - k + 0.5) / field
    return part, tl.where(slow, 0.0, 0.7 * tl.sqrt(part * (1.0 - part) / field) + 0.5 / field)


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
    part, margin = part_left(lo_count, hi_count, k, slow)
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
def counted(score, first_score, second_score):
    """Count the scores that reach two guesses.

    Args:
        score: Fewer than 65536.
        first_score: A score.
        second_score: A score.

    Returns:
        Both counts in one number, 16 bits each, the first in the lower.
    """
    return tl.sum((score >= first_score).to(tl.int32) + ((score >= second_score).to(tl.int32) << 16), 0)


@triton.jit
def reaching(score, key, DIRECT: tl.constexpr):
    """Tell which scores reach a key's.

    A comparison and a choice of what to add are two slow instructions. The sign of a difference from the next score
    below is an addition, and a shift that adds it up another. On a GPU the difference of equal infinities, and of
    anything and NaN, has no sign.

    Args:
        score: Scores; what cannot be chosen is -inf or NaN.
        key: A key, of a score other than -inf.
        DIRECT: Whether by the sign, which a CPU sets for infinities.

    Returns:
        1 for each that does, else 0, int32.
    """
    if DIRECT:
        # The keys 0 and -1 are the two zeros, which are equal.
        return ((score_of(key - 1 - (key == 0).to(tl.int32)) - score).to(tl.uint32, bitcast=True) >> 31).to(tl.int32)
    return (score >= score_of(key)).to(tl.int32)


@triton.jit
def by_threads(tally, THREADS: tl.constexpr):
    """Add up what a thread holds.

    Args:
        tally: (C * T * F,) numbers, as a load deals them out: four neighbours to a thread.
        THREADS: T.

    Returns:
        (T * F,)
    """
    CHUNKS: tl.constexpr = tally.shape[0] // (THREADS * NEIGHBOURS)
    return tl.sum(tl.reshape(tally, [CHUNKS, THREADS * NEIGHBOURS]), 0)


@triton.jit
def both_counts(score, first, second, THREADS: tl.constexpr, DIRECT: tl.constexpr):
    """Count the scores of each thread that reach two keys.

    Args:
        score: Scores.
        first: A key.
        second: A key.
        THREADS: T.
        DIRECT: As `reaching` has it.

    Returns:
        (T * F,) both counts in one number, 16 bits each, the first in the lower.
    """
    reach_first, reach_second = reaching(score, first, DIRECT), reaching(score, second, DIRECT)
    return by_threads(reach_first, THREADS) + (by_threads(reach_second, THREADS) << 16)
