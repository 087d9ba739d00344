"""The search for the k-th best score by the blocks that hold a row: what each counts, all add up.

Shape legend: C blocks (chunks) of a row, W words of the lines of a set, as `rivals` has them.
"""

import triton
import triton.language as tl

from ..board.fused import FIELD, MASK, collect, collect_both, counted_at, lifted, lowered, post, two
from ..four.fused import counted_at_four, four_beyond, four_first, four_next, moments, narrowed
from ..rivals.fused import LINE, RIVALS, SHARE, closed_in, hear_rivals, tell_rivals
from ..search.fused import BEYOND, LEAST, between, middle_of, score_of, told

# The outer two of the first four guesses lie apart by more than the moments alone ask for, the inner two by a fifth of
# it: what steps would be lost where a set's scores are unlike normal ones, all sets wait for.
WIDER, INNER_PART = tl.constexpr(1.5), tl.constexpr(0.1)


@triton.jit
def guessed(score, wanted, word, told_ptr, pair, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
            BLOCK_PARTS: tl.constexpr):  # fmt: skip
    """Guess where the k-th score lies.

    Args:
        score: The block's scores.
        wanted: How many rows are wanted of the set.
        word: Where the set's words are.
        told_ptr: What is known of the scores of all sets, as `told` has it.
        pair: Which set this is.
        CHUNKS: C.
        PARTS: Blocks that have told of a set, or 0.
        BLOCK_PARTS: Power of two, at least PARTS.

    Returns:
        How many scores can be chosen, a guess below, one above, and the first word that is not used.
    """
    if PARTS > 0:
        able, mean, deviation, skew = told(told_ptr, pair, PARTS, BLOCK_PARTS)
        many = tl.maximum(able, 1)
        low_score, _, _, high_score = four_first(mean, deviation, many, tl.maximum(tl.minimum(wanted, many), 1), skew)
    else:
        own, sums, squares = moments(score)
        share = tl.maximum(own, 1)
        mean = sums / share
        deviation = tl.sqrt(tl.maximum(squares / share - mean * mean, 0.0))
        # Guesses are sent with the count, and made as if all chunks had as many scores as this one.
        many = share * CHUNKS
        outer, _, _, inner = four_first(mean, deviation, many, tl.maximum(tl.minimum(wanted, many), 1))
        some = own > 0
        known, least, most = two(own, some.to(tl.int32)), lifted(outer, some), lifted(inner, some)
        post(word, known, CHUNKS)
        post(word + 1, least, CHUNKS)
        post(word + 2, most, CHUNKS)
        known = collect(word, known, CHUNKS)
        least, most = collect_both(word + 1, least, most, CHUNKS)
        able, blocks = (known & MASK).to(tl.int32), tl.maximum((known >> FIELD).to(tl.int32), 1)
        low_score, high_score = lowered(least, blocks), lowered(most, blocks)
        word += 3
    return able, low_score, high_score, word


@triton.jit
def guessed_again(lo, hi, lo_count, hi_count, field, reach, k):
    """Make the next four guesses, after a step.

    Args:
        lo: As `four_next` has it.
        hi: As `four_next` has it.
        lo_count: Keys at or above lo.
        hi_count: Keys at or above hi.
        field: How many keys were in question before the step.
        reach: As `four_beyond` has it.
        k: Keys wanted.

    Returns:
        The four keys, and `reach` for the next guesses.
    """
    slow = (lo_count - hi_count) * 4 > field
    if (lo == LEAST) | (hi == BEYOND):
        first, second, third, fourth = four_beyond(lo, hi, reach, slow)
        reach *= 16.0
    else:
        first, second, third, fourth = four_next(lo, hi, lo_count, hi_count, k, slow)
    return first, second, third, fourth, reach


@triton.jit
def search_jointly(score, wanted, able, low_score, high_score, word, lines, chunk, CHUNKS: tl.constexpr,
                   CHUNK: tl.constexpr, GROUPS: tl.constexpr, DIRECT: tl.constexpr, THREADS: tl.constexpr,
                   BLOCK_LINES: tl.constexpr):  # fmt: skip
    """Find the k-th best score of all blocks of a set.

    Args:
        score: The block's scores.
        wanted: How many rows are wanted of the set.
        able: How many can be chosen.
        low_score: A guess below the k-th.
        high_score: One above.
        word: The first of the set's words that is not used.
        lines: Where the set's lines are.
        chunk: Which block this is.
        CHUNKS: C.
        CHUNK: Rows of a block.
        GROUPS: Of 128 rows, of a block.
        DIRECT: As `show` has it.
        THREADS: Of the block.
        BLOCK_LINES: W.

    Returns:
        As `search_alone`, after k; then the scores that blocks have told each other, how many rows above these are in
        the blocks before, and -1 if they have told none.
    """
    k = tl.maximum(tl.minimum(wanted, able), 0)
    lo, hi, lo_count, hi_count = able * 0 + LEAST, able * 0 + BEYOND, able, able * 0
    middle = middle_of(lo, hi)
    centre, reach = (low_score + high_score) * 0.5, (high_score - low_score) * WIDER
    first, fourth = between(centre - reach * 0.5, lo, hi, middle), between(centre + reach * 0.5, lo, hi, middle)
    second = between(centre - reach * INNER_PART, lo, hi, middle)
    third = between(centre + reach * INNER_PART, lo, hi, middle)
    rivals, ahead = tl.full([BLOCK_LINES], float("-inf"), tl.float32), able * 0
    base, few = able * 0 - 1, able * 0 + min(RIVALS, SHARE * CHUNKS)
    while (base < 0) & (k > 0) & (lo_count != k) & (lo + 1 < hi):
        low_counts, high_counts = counted_at(score, first, second, third, fourth, CHUNK > 32768, DIRECT, THREADS)
        post(word, low_counts, CHUNKS)
        post(word + 1, high_counts, CHUNKS)
        low_counts, high_counts = collect_both(word, low_counts, high_counts, CHUNKS)
        word += 2
        field = lo_count - hi_count
        lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, first, (low_counts & MASK).to(tl.int32), k)
        lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, second, (low_counts >> FIELD).to(tl.int32), k)
        lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, third, (high_counts & MASK).to(tl.int32), k)
        lo, lo_count, hi, hi_count = narrowed(
            lo, lo_count, hi, hi_count, fourth, (high_counts >> FIELD).to(tl.int32), k
        )
        first, second, third, fourth, reach = guessed_again(lo, hi, lo_count, hi_count, field, reach, k)
        if CHUNKS > 1:  # noqa: SIM102 - a constant, which leaves no branch
            if (lo_count - hi_count <= few) & (lo_count != k) & (lo + 1 < hi):
                tell_rivals(score, score_of(lo), score_of(hi), lines + chunk * LINE, GROUPS, DIRECT)
                rivals, ahead, whole = hear_rivals(lines, chunk, CHUNKS, BLOCK_LINES)
                # Where a block has more than its line holds, all go on as before, and tell none again.
                base, few = tl.where(whole, hi_count, -1), few * 0
    while (k > 0) & (lo_count != k) & (lo + 1 < hi):
        lower, upper = counted_at_four(rivals, first, second, third, fourth)
        field = lo_count - hi_count
        lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, first, base + (lower & 0xFFFF), k)
        lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, second, base + (lower >> 16), k)
        lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, third, base + (upper & 0xFFFF), k)
        lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, fourth, base + (upper >> 16), k)
        if (lo_count - hi_count) * 4 > field:
            # equal scores, most likely, which guesses would close in on bit by bit
            lo, hi = closed_in(rivals, lo, hi)
        first, second, third, fourth, reach = guessed_again(lo, hi, lo_count, hi_count, field, reach, k)
    return k, lo, hi, lo_count, hi_count, rivals, ahead, base
