"""First guesses of a search from some of the scores, while the others are on their way into registers.

Moments need all scores, and tell where the k-th lies only if these are normal. A sixteenth of them, searched as all are
but within a few instructions a step, tells it of any scores: two guesses between which the k-th lies nineteen times of
twenty, and how close scores lie there.

Shape legend: M scores of the sample.
"""

import triton
import triton.language as tl

from ..line.fused import key_at, place_of
from ..search.fused import (
    BEYOND,
    LEAST,
    NEIGHBOURS,
    counted,
    middle_of,
    normal_quantile,
    ordered_key,
    score_of,
    shrink,
)

# Where guesses beyond a counted end lie, in parts of what is expected.
NEAR, FAR, GROWTH = tl.constexpr(0.7), tl.constexpr(1.4), tl.constexpr(16.0)
# Guesses lie so many deviations of a count apart from where the k-th is expected: of a sample, and of what is between.
SAMPLE_MARGIN, MARGIN = tl.constexpr(1.75), tl.constexpr(1.3)


@triton.jit
def sample_of(s_set, rows, SAMPLE: tl.constexpr):
    """Load some of the scores, four neighbours here and there.

    Args:
        s_set: Where the set's scores are.
        rows: S.
        SAMPLE: M, a power of two.

    Returns:
        (M,) scores, -inf if there are fewer.
    """
    number = tl.arange(0, SAMPLE)
    step = tl.maximum(rows // SAMPLE, 1) * NEIGHBOURS
    row = (number // NEIGHBOURS) * step + number % NEIGHBOURS
    return tl.load(s_set + row, mask=row < rows, other=float("-inf"))


@triton.jit
def next_two(lo, hi, lo_count, hi_count, k, per, slow, BY_KEYS: tl.constexpr):
    """Guess two keys between lo and hi, or beyond the one of them that was counted.

    Args:
        lo: Key with at least k keys at or above it; LEAST if that was not counted.
        hi: Key with fewer than k; BEYOND if that was not counted.
        lo_count: Keys at or above lo.
        hi_count: Keys at or above hi.
        k: Keys wanted.
        per: Places lie so far apart, where only one end was counted.
        slow: Whether the last steps did little: one guess then halves the range.
        BY_KEYS: As `place_of` has it.

    Returns:
        The two keys, in order.
    """
    middle = middle_of(lo, hi)
    low, high = place_of(lo, BY_KEYS), place_of(hi, BY_KEYS)
    field = (lo_count - hi_count).to(tl.float32)
    part = (lo_count - k + 0.5) / field
    margin = tl.where(slow, 0.0, MARGIN * tl.sqrt(part * (1.0 - part) / field) + 0.5 / field)
    width = high - low
    one, other = low + width * (part - margin), low + width * (part + margin)
    up, down = per * (lo_count - k + 0.5), per * (k - hi_count + 0.5)
    one, other = tl.where(hi == BEYOND, low + up * NEAR, one), tl.where(hi == BEYOND, low + up * FAR, other)
    one, other = tl.where(lo == LEAST, high - down * FAR, one), tl.where(lo == LEAST, high - down * NEAR, other)
    first, second = key_at(one, lo, hi, middle, BY_KEYS), key_at(other, lo, hi, middle, BY_KEYS)
    second = tl.where(slow & (lo != LEAST) & (hi != BEYOND), middle, second)
    return tl.minimum(first, second), tl.maximum(first, second)


@triton.jit
def places_of(sample, usable, BY_KEYS: tl.constexpr):
    """Tell where on the line of guesses the scores of a sample lie, and which of them count.

    Args:
        sample: Scores.
        usable: Which of them can be chosen.
        BY_KEYS: As `place_of` has it; +inf, which comes first whatever the others are, does not count there.

    Returns:
        Places, zero for those that do not count, and which do.
    """
    if BY_KEYS:
        usable &= sample < float("inf")
        return tl.where(usable, ordered_key(sample).to(tl.float32), 0.0), usable
    return tl.where(usable, sample, 0.0), usable


@triton.jit
def guessed_by(sample, wanted, rows, BY_KEYS: tl.constexpr):
    """Guess two places on both sides of the k-th of all from a sample.

    Args:
        sample: (M,) scores.
        wanted: Rows wanted of all.
        rows: S.
        BY_KEYS: As `place_of` has it.

    Returns:
        The lower place, the higher one, and how far places lie apart there, of all.
    """
    usable = sample > float("-inf")
    able = tl.sum(usable.to(tl.int32), 0)
    many = tl.maximum(able, 1).to(tl.float32)
    seen, counts_there = places_of(sample, usable, BY_KEYS)
    counted_there = tl.maximum(tl.sum(counts_there.to(tl.int32), 0), 1).to(tl.float32) if BY_KEYS else many
    mean = tl.sum(seen, 0) / counted_there
    deviation = tl.sqrt(tl.maximum(tl.sum(seen * seen, 0) / counted_there - mean * mean, 0.0))
    # Hidden rows are taken to be as many in the sample as elsewhere.
    share = sample.shape[0] / tl.maximum(rows, sample.shape[0]).to(tl.float32)
    rank = tl.minimum(tl.maximum(wanted * share, 0.5), tl.maximum(many - 0.5, 0.5))
    part = rank / many
    reach = SAMPLE_MARGIN * tl.sqrt(rank * tl.maximum(1.0 - part, 0.0)) + 1.0
    normal = normal_quantile(part)
    per = deviation / (many * tl.exp2(normal * normal * -0.7213475) * 0.3989423)
    k = tl.minimum(tl.maximum((rank + 0.5).to(tl.int32), 1), tl.maximum(able, 1))
    lo, hi, lo_count, hi_count = able * 0 + LEAST, able * 0 + BEYOND, able, able * 0
    middle = middle_of(lo, hi)
    low, high = mean + deviation * normal - reach * per, mean + deviation * normal + reach * per
    first, second = key_at(low, lo, hi, middle, BY_KEYS), key_at(high, lo, hi, middle, BY_KEYS)
    while ((lo_count - hi_count).to(tl.float32) > 2.0 * reach) & (lo_count != k) & (lo + 1 < hi):
        counts = counted(sample, score_of(first), score_of(second))
        field, open_end = lo_count - hi_count, (lo == LEAST) | (hi == BEYOND)
        lo, lo_count, hi, hi_count = shrink(lo, lo_count, hi, hi_count, first, counts & 0xFFFF, second, counts >> 16, k)
        first, second = next_two(lo, hi, lo_count, hi_count, k, per, (lo_count - hi_count) * 4 > field, BY_KEYS)
        per = tl.where(open_end & ((lo == LEAST) | (hi == BEYOND)), per * GROWTH, per)
    lo_place, hi_place = place_of(lo, BY_KEYS), place_of(hi, BY_KEYS)
    closed = (lo != LEAST) & (hi != BEYOND)
    per = tl.where(closed, (hi_place - lo_place) / tl.maximum(lo_count - hi_count, 1), per)
    base_place, base_count = tl.where(hi == BEYOND, lo_place, hi_place), tl.where(hi == BEYOND, lo_count, hi_count)
    counted_one = (lo != LEAST) | (hi != BEYOND)
    low = tl.where(counted_one, base_place + (base_count - rank - reach) * per, low)
    high = tl.where(counted_one, base_place + (base_count - rank + reach) * per, high)
    return low, high, per * share
