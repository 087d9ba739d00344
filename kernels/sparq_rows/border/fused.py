"""The best ranks of a row as bits: a search that passes over the row for each step, which stays in the first cache.

Ranks are not negative, so their bits are integers of the same order. These lie as logs do, whereas sums of weights are
far from normal and from linear: guesses are made among the integers.

Shape legend: B batch, G KV heads, T query rows (the last T of the S key rows), t of them at a time, S key rows, X ranks
of a row, counted from the first key that is no padding, W words of 32 keys.
"""

import triton
import triton.language as tl

from ...select_topk.search.fused import first_guesses, middle_of, part_left, shrink

# Bits of 2^-15, about which ranks of a long text lie: squares of differences from it keep their digits.
ABOUT = tl.constexpr(112 << 23)
MOST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def load_keys_of_row(base, at, others, PART: tl.constexpr):
    """Load some ranks of one row as integers.

    Args:
        base: Pointer to the first rank of the row, as integers.
        at: First of those loaded.
        others: How many ranks there are.
        PART: Ranks at once.

    Returns:
        (PART,) int32; -1 beyond the end. Loads reach to a multiple of 16 ranks, so that they are whole.
    """
    row = at + tl.arange(0, PART)
    key = tl.load(base + row, mask=row < (others + 15) // 16 * 16, other=-1)
    return tl.where(row < others, key, -1)


@triton.jit
def describe_row(base, others, PART: tl.constexpr):
    """Describe the ranks of one row, as integers, by sums over its parts.

    Args:
        base: Pointer to the first, as integers.
        others: How many they are.
        PART: Ranks at once.

    Returns:
        Mean and deviation of the differences from `ABOUT`, the least and the largest.
    """
    sums, squares = tl.zeros([PART], tl.float32), tl.zeros([PART], tl.float32)
    least, largest = tl.full([PART], MOST, tl.int32), tl.full([PART], -1, tl.int32)
    for at in range(0, others, PART):
        key = load_keys_of_row(base, at, others, PART)
        there = key >= 0
        value = tl.where(there, key - ABOUT, 0).to(tl.float32)
        sums, squares = sums + value, squares + value * value
        least, largest = tl.minimum(least, tl.where(there, key, MOST)), tl.maximum(largest, key)
    many = tl.maximum(others, 1)
    mean = tl.sum(sums, 0) / many
    deviation = tl.sqrt(tl.maximum(tl.sum(squares, 0) / many - mean * mean, 0.0))
    return mean, deviation, tl.min(least, 0), tl.max(largest, 0)


@triton.jit
def key_between(guess, lo, hi):
    """Make a guess an integer strictly between two others.

    Args:
        guess: Float.
        lo: Integer below.
        hi: Integer above, not the next one.

    Returns:
        The integer.
    """
    return tl.minimum(tl.maximum(lo + 1, guess.to(tl.int32)), hi - 1)


@triton.jit
def next_keys(lo, hi, lo_count, hi_count, k, slow):
    """Guess two integers between lo and hi, on both sides of where k ranks should be left.

    Args:
        lo: Integer that at least k reach.
        hi: Integer that fewer than k reach.
        lo_count: How many reach lo.
        hi_count: How many reach hi.
        k: Wanted.
        slow: Whether the last step did little: one guess then halves the range.

    Returns:
        The two, in order.
    """
    part, margin = part_left(lo_count, hi_count, k, slow)
    span = (hi - lo).to(tl.float32)
    first = key_between(lo + span * (part - margin), lo, hi)
    second = tl.where(slow, middle_of(lo, hi), key_between(lo + span * (part + margin), lo, hi))
    return tl.minimum(first, second), tl.maximum(first, second)


@triton.jit
def border_of_row(base, others, k, PART: tl.constexpr):
    """Search one row for the border of its k best.

    Args:
        base: Pointer to the first rank, as integers.
        others: How many ranks there are.
        k: Wanted, at most as many.
        PART: Ranks at once, a power of two.

    Returns:
        The border as an integer; how many reach it, more than k only if equal ones do; how many lie above it then.
    """
    mean, deviation, least, largest = describe_row(base, others, PART)
    whole = others // PART * PART  # parts that need no mask
    lo, hi, lo_count, hi_count = least, largest + 1, others, others * 0
    low, high = first_guesses(mean, deviation, tl.maximum(others, 1), tl.maximum(k, 1))
    # Infinite guesses, of all ranks or none, become the ends.
    one = key_between(tl.minimum(tl.maximum(low, -1e9), 1e9) + ABOUT, lo, hi)
    two = key_between(tl.minimum(tl.maximum(high, -1e9), 1e9) + ABOUT, lo, hi)
    while (k > 0) & (lo_count != k) & (lo + 1 < hi):
        key = load_keys_of_row(base, whole, others, PART)
        # A difference of two integers that are not negative has the sign of their order: -1 for each that is less.
        less_one, less_two = (key - one) >> 31, (key - two) >> 31
        for at in range(0, whole, PART):
            key = tl.load(base + at + tl.arange(0, PART))
            less_one, less_two = less_one + ((key - one) >> 31), less_two + ((key - two) >> 31)
        at_one, at_two = whole + PART + tl.sum(less_one, 0), whole + PART + tl.sum(less_two, 0)
        field = lo_count - hi_count
        lo, lo_count, hi, hi_count = shrink(lo, lo_count, hi, hi_count, one, at_one, two, at_two, k)
        one, two = next_keys(lo, hi, lo_count, hi_count, k, (lo_count - hi_count) * 4 > field)
    return tl.where(k > 0, lo, MOST), lo_count, hi_count


@triton.jit
def choose_bits_kernel(rank_ptr, budget_ptr, local_ptr, first_ptr, bits_ptr, begin, some, new, rows, line, words,
                       KV_HEADS: tl.constexpr, PART: tl.constexpr):  # fmt: skip
    """Choose the keys of one row of one KV head, of equal ranks the first; the grid is (t, B * G).

    Args:
        rank_ptr: (B, G, t, X) ranks, not negative; of keys that a row does not see, anything.
        budget_ptr: (B, T) keys wanted, local ones among them.
        local_ptr: (B, T) last keys that come first.
        first_ptr: (B,) first row that is no padding.
        bits_ptr: (B, G, T, W) words, zeros; written as far as the row sees.
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        line: X, a multiple of 16.
        words: W.
        KV_HEADS: G.
        PART: Ranks at once, a power of two.
    """
    at, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    bit, word = tl.arange(0, 32)[None, :], tl.arange(0, PART // 32)[:, None]
    batch, place = pair // KV_HEADS, pair * new + begin + at
    base = (rank_ptr + (pair * some + at) * line).to(tl.pointer_type(tl.int32), bitcast=True)
    seen = tl.maximum(rows - new + begin + at - tl.load(first_ptr + batch) + 1, 0)
    wanted = tl.minimum(tl.maximum(tl.load(budget_ptr + batch * new + begin + at), 0), seen)
    # Local keys are taken in any case, and the search is among the others.
    others = seen - tl.minimum(tl.load(local_ptr + batch * new + begin + at), wanted)
    k = wanted - (seen - others)
    border, count, above = border_of_row(base, others, k, PART)
    room, taken = tl.where(count == k, others, k - above), k * 0
    for key in range(0, seen, PART):
        row = key + word * 32 + bit
        rank = tl.load(base + row, mask=row < line, other=-1)
        keep = ((rank >= border) & (row < others)) | ((row >= others) & (row < seen))
        if count != k:
            level = ((rank == border) & (row < others) & (k > 0)).to(tl.int32)
            before = tl.sum(level, 1)
            before = taken + tl.cumsum(before, 0) - before
            keep = keep & ((level == 0) | (before[:, None] + tl.cumsum(level, 1) <= room))
            taken += tl.sum(tl.sum(level, 1), 0)
        words_of = tl.sum(keep.to(tl.int32) << bit, 1)
        at_word = key // 32 + tl.arange(0, PART // 32)
        tl.store(bits_ptr + place * words + at_word, words_of, mask=at_word < words)
