"""The choice by one block that holds all scores of a set: how many, down to where, and their places.

Shape legend: K width of the result.
"""

import triton
import triton.language as tl

from ..alone.fused import search_alone
from ..places.fused import GROUP_ROWS, grouped, write_reached, write_rows
from ..sample.fused import guessed_by
from ..search.fused import LEAST, by_threads, reaching, score_of

# Of equal scores so many too many are taken out one by one, in less time than all are read again.
FEW_TIES = tl.constexpr(8)


@triton.jit
def held_scores(s_set, first_row, rows, SIZE: tl.constexpr, ALIGNED: tl.constexpr):
    """Load the scores of some rows, four neighbours to a thread, as their places are found.

    Args:
        s_set: Where the set's scores are.
        first_row: Number of the first of these rows, a multiple of four.
        rows: S.
        SIZE: How many rows, a power of two.
        ALIGNED: Whether S is a multiple of four; a load of four is not aligned otherwise, and each is loaded by itself.

    Returns:
        (SIZE,) scores, -inf beyond the last.
    """
    none = float("-inf")
    if ALIGNED:
        row = first_row + tl.arange(0, SIZE)
        return tl.load(s_set + row, mask=row < rows // 4 * 4, other=none)
    row = first_row + tl.arange(0, SIZE // 4) * 4
    one, two = tl.load(s_set + row, row < rows, none), tl.load(s_set + row + 1, row + 1 < rows, none)
    three, four = tl.load(s_set + row + 2, row + 2 < rows, none), tl.load(s_set + row + 3, row + 3 < rows, none)
    return tl.reshape(tl.join(tl.join(one, three), tl.join(two, four)), [SIZE])


@triton.jit
def seen_scores(s_set, row, first, end):
    """Load the scores of some rows.

    Args:
        s_set: Where the set's scores are.
        row: Rows.
        first: The first that may be chosen.
        end: One past the last.

    Returns:
        Their scores, -inf for rows that may not be chosen.
    """
    return tl.load(s_set + row, mask=(row >= first) & (row < end), other=float("-inf"))


@triton.jit
def put_scores(s_set, score, first_row, end, SIZE: tl.constexpr):
    """Write scores that so far are in registers only.

    Args:
        s_set: Where the set's scores have room.
        score: (SIZE,) scores.
        first_row: Number of the first of these rows.
        end: One past the last.
        SIZE: How many rows.
    """
    row = first_row + tl.arange(0, SIZE)
    tl.store(s_set + row, score, mask=row < end)


@triton.jit
def without_last(score, rest, tie, excess, start, BLOCK_ROWS: tl.constexpr, BLOCK_REST: tl.constexpr):
    """Take the last of some equal scores out of the choice, one after the other.

    Args:
        score: (BLOCK_ROWS,) scores.
        rest: (BLOCK_REST,) those of the rows behind them, if any.
        tie: The score that several have.
        excess: How many of these are not wanted, at least 0.
        start: Number of the first row.
        BLOCK_ROWS: How many rows.
        BLOCK_REST: The same of `rest`, or 0.

    Returns:
        Both, -inf where a row is taken out.
    """
    row = start + tl.arange(0, BLOCK_ROWS)
    rest_row = start + BLOCK_ROWS + tl.arange(0, BLOCK_REST) if BLOCK_REST else row
    while excess > 0:
        last = tl.max(tl.where(score == tie, row, -1), 0)
        if BLOCK_REST:
            last = tl.maximum(last, tl.max(tl.where(rest == tie, rest_row, -1), 0))
            rest = tl.where(rest_row == last, float("-inf"), rest)
        score = tl.where(row == last, float("-inf"), score)
        excess -= 1
    return score, rest


@triton.jit
def choose(score, rest, sample, s_set, out, wanted, start, first, end, BLOCK_ROWS: tl.constexpr,
           BLOCK_REST: tl.constexpr, DIRECT: tl.constexpr, THREADS: tl.constexpr,
           MADE: tl.constexpr, BY_KEYS: tl.constexpr):  # fmt: skip
    """Choose the best rows of a set, and write them in order.

    Args:
        score: (BLOCK_ROWS,) the scores of the rows from `start` on; -inf or NaN where a row may not be chosen.
        rest: (BLOCK_REST,) those of the rows behind them, if any.
        sample: Some of the scores.
        s_set: Where the set's scores are, or have room if they were MADE here: of many equal ones they are read again.
        out: Where the set's first place is.
        wanted: Rows wanted.
        start: Number of the first row that is held.
        first: The first that may be chosen.
        end: One past the last.
        BLOCK_ROWS: Power of two, at least four for each thread.
        BLOCK_REST: Power of two, at least four for each thread, or 0.
        DIRECT: As `scatter` has it.
        THREADS: Of the block.
        MADE: Whether the scores are in registers only; they are then written before they are read again.
        BY_KEYS: As `place_of` has it.

    Returns:
        How many are chosen.
    """
    REST: tl.constexpr = BLOCK_REST > 0
    low, high, per = guessed_by(sample, wanted, end - start, BY_KEYS)
    usable = by_threads(reaching(score, wanted * 0 + LEAST, DIRECT), THREADS)
    if REST:
        usable += by_threads(reaching(rest, wanted * 0 + LEAST, DIRECT), THREADS)
    able = tl.sum(usable, 0)
    k = tl.maximum(tl.minimum(wanted, able), 0)
    lo, hi, lo_count, hi_count = search_alone(
        score, rest, k, usable, able, low, high, per, REST, THREADS, DIRECT, BY_KEYS
    )
    excess = lo_count - k
    # of a few equal scores too many, which is common, none needs to be read again
    few = tl.where(excess <= FEW_TIES, excess, 0)
    score, rest = without_last(score, rest, score_of(lo), few, start, BLOCK_ROWS, BLOCK_REST)
    excess -= few
    place, first_tie = able * 0, able * 0
    if (k > 0) & (excess == 0):
        place = write_reached(out, score, start, lo, place, BLOCK_ROWS // GROUP_ROWS, DIRECT)
        if REST:
            write_reached(out, rest, start + BLOCK_ROWS, lo, place, BLOCK_REST // GROUP_ROWS, DIRECT)
    elif k > 0:
        # Some of equal scores: read again, in parts, since to number them in registers takes twice the instructions.
        PART: tl.constexpr = 4 * THREADS
        if MADE:
            put_scores(s_set, score, start, end, BLOCK_ROWS)
            if REST:
                put_scores(s_set, rest, start + BLOCK_ROWS, end, BLOCK_REST)
            tl.debug_barrier()
        for part in range(0, BLOCK_ROWS + BLOCK_REST, PART):
            score_in = seen_scores(s_set, start + part + tl.arange(0, PART), first, end)
            place, first_tie = write_rows(out, grouped(score_in, PART // GROUP_ROWS), start + part, score_of(lo),
                                          score_of(hi), excess, k - hi_count, place, first_tie,
                                          PART // GROUP_ROWS, DIRECT)  # fmt: skip
    return k


@triton.jit
def write_end(out, count, k, width, BLOCK_WIDTH: tl.constexpr):
    """Write how many are chosen, and -1 to the places that are left.

    Args:
        out: Where the set's first place is.
        count: Where its count is.
        k: How many.
        width: K.
        BLOCK_WIDTH: Power of two, at least K.
    """
    if k < width:
        slot = tl.arange(0, BLOCK_WIDTH)
        tl.store(out + slot, tl.full([BLOCK_WIDTH], -1, tl.int32), mask=(slot >= k) & (slot < width))
    tl.store(count, k)
