"""The border of rows of scores that no block of threads holds: each step of the search passes over the row again.

Shape legend: B batch, N sets of rows, T query rows, t of them at a time, W scores of a row.
"""

import triton
import triton.language as tl

from ...select_topk.search.fused import between, first_guesses, middle_of, next_guesses, ordered_key, score_of, shrink


@triton.jit
def load_part(base, at, width, PART: tl.constexpr):
    """Load some scores of one row.

    Args:
        base: Pointer to the first.
        at: First of those loaded.
        width: W.
        PART: Scores at once.

    Returns:
        (PART,) float32; -inf beyond the end.
    """
    row = at + tl.arange(0, PART)
    return tl.load(base + row, mask=row < width, other=float("-inf"))


@triton.jit
def long_border_kernel(rank_ptr, budget_ptr, kth_ptr, next_ptr, begin, some, new, width, PART: tl.constexpr):
    """Search for the border of one row of ranks; the grid is (t, B * N).

    Args:
        rank_ptr: (B, N, t, W) ranks; -inf and NaN are never kept.
        budget_ptr: (B, N, T) rows wanted; of a row with a negative number no rank is read.
        kth_ptr: (B, N, T) k-th largest scores.
        next_ptr: (B, N, T) those after them.
        begin: First of the t query rows.
        some: t.
        new: T.
        width: W.
        PART: Scores at once, a power of two.
    """
    at, sets = tl.program_id(0), tl.program_id(1).to(tl.int64)
    base, place = rank_ptr + (sets * some + at) * width, sets * new + begin + at
    width = tl.where(tl.load(budget_ptr + place) < 0, 0, width)
    able, sums, squares = tl.zeros([PART], tl.int32), tl.zeros([PART], tl.float32), tl.zeros([PART], tl.float32)
    least, most = tl.full([PART], float("inf"), tl.float32), tl.full([PART], float("-inf"), tl.float32)
    for key in range(0, width, PART):
        score = load_part(base, key, width, PART)
        usable = score > float("-inf")
        seen = tl.where(usable, score, 0.0)
        able, sums, squares = able + usable.to(tl.int32), sums + seen, squares + seen * seen
        least = tl.minimum(least, tl.where(usable, score, float("inf")))
        most = tl.maximum(most, tl.where(usable, score, float("-inf")))
    many = tl.sum(able, 0)
    mean = tl.sum(sums, 0) / tl.maximum(many, 1)
    deviation = tl.sqrt(tl.maximum(tl.sum(squares, 0) / tl.maximum(many, 1) - mean * mean, 0.0))
    k = tl.maximum(tl.minimum(tl.load(budget_ptr + place), many), 0)
    # lo always keeps at least k scores and hi always keeps fewer.
    lo, hi = ordered_key(tl.min(least, 0)), ordered_key(tl.max(most, 0)) + 1
    lo_count, hi_count = many, many * 0
    low_guess, high_guess = first_guesses(mean, deviation, tl.maximum(many, 1), tl.maximum(k, 1))
    middle = middle_of(lo, hi)
    one, two = between(low_guess, lo, hi, middle), between(high_guess, lo, hi, middle)
    while (k > 0) & (lo_count != k) & (lo + 1 < hi):
        one_score, two_score = score_of(one), score_of(two)
        at_one, at_two = tl.zeros([PART], tl.int32), tl.zeros([PART], tl.int32)
        for key in range(0, width, PART):
            score = load_part(base, key, width, PART)
            at_one, at_two = at_one + (score >= one_score).to(tl.int32), at_two + (score >= two_score).to(tl.int32)
        field = lo_count - hi_count
        lo, lo_count, hi, hi_count = shrink(
            lo, lo_count, hi, hi_count, one, tl.sum(at_one, 0), two, tl.sum(at_two, 0), k
        )
        one, two = next_guesses(lo, hi, lo_count, hi_count, k, (lo_count - hi_count) * 4 > field)
    border = tl.where(k > 0, score_of(lo), float("inf"))
    least, most = tl.full([PART], float("inf"), tl.float32), tl.full([PART], float("-inf"), tl.float32)
    for key in range(0, width, PART):
        score = load_part(base, key, width, PART)
        least = tl.minimum(least, tl.where(score >= border, score, float("inf")))
        most = tl.maximum(most, tl.where(score < border, score, float("-inf")))
    tied = (k > 0) & (lo_count != k)
    tl.store(kth_ptr + place, tl.where(tied, border, tl.min(least, 0)))
    tl.store(next_ptr + place, tl.where(tied, border, tl.max(most, 0)))
