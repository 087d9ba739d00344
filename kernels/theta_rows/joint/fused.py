"""Blocks that mend a set together: what they tell each other, through words of a board as `select_topk.joint` has them.

How many blocks share a set is known only while the kernel runs, so scores lie in memory, not in registers. A block
alone tells nobody: it is so where many sets are mended, and in Triton's interpreter, in which no block may wait.

Shape legend: C blocks (chunks) of a set, J heads of a group.
"""

import triton
import triton.language as tl

from ...select_topk.board.fused import ARRIVAL, ARRIVALS, COUNTS, FIELD, MASK, lifted, lowered, two
from ...select_topk.four.fused import four_first, four_next, narrowed
from ...select_topk.search.fused import BEYOND, LEAST, between, middle_of, score_of

LOG2_E = tl.constexpr(1.4426950408889634)
# Of finite numbers the largest, nearly: a top that is infinite is held to it, so that no difference is NaN.
HUGE = tl.constexpr(3e38)


@triton.jit
def tell(word, value, chunks):
    """Add a block's number to a word of the board.

    Args:
        word: Pointer to the word, zero before; each is used once.
        value: int64 below 2^56, also in sum.
        chunks: C; alone there is nobody to tell.
    """
    if chunks > 1:
        tl.atomic_add(word, value + ARRIVAL, sem="relaxed")


@triton.jit
def heard(word, value, chunks):
    """Wait until all blocks of a set have told.

    Args:
        word: Pointer to the word.
        value: What this block has told.
        chunks: C; alone there is nothing to wait for.

    Returns:
        The sum.
    """
    if chunks > 1:
        seen = tl.load(word, volatile=True)
        while (seen >> ARRIVALS) < chunks:
            seen = tl.load(word, volatile=True)
        value = seen & COUNTS
    return value


@triton.jit
def guessed(word, own, sums, squares, wanted, chunks):
    """Guess the k-th score of all blocks from what each knows of its own.

    Args:
        word: Three words of the set.
        own: Scores of the block that can be chosen.
        sums: Their sum.
        squares: The sum of their squares.
        wanted: How many rows are wanted of the set.
        chunks: C.

    Returns:
        Scores of the set that can be chosen, a guess below and one above the k-th.
    """
    share = tl.maximum(own, 1)
    mean = sums / share
    deviation = tl.sqrt(tl.maximum(squares / share - mean * mean, 0.0))
    # made as if all chunks had as many scores as this one
    many = share * chunks
    outer, _, _, inner = four_first(mean, deviation, many, tl.maximum(tl.minimum(wanted, many), 1))
    some = own > 0
    known, least, most = two(own, some.to(tl.int32)), lifted(outer, some), lifted(inner, some)
    tell(word, known, chunks)
    tell(word + 1, least, chunks)
    tell(word + 2, most, chunks)
    known, least, most = heard(word, known, chunks), heard(word + 1, least, chunks), heard(word + 2, most, chunks)
    blocks = tl.maximum((known >> FIELD).to(tl.int32), 1)
    return (known & MASK).to(tl.int32), lowered(least, blocks), lowered(most, blocks)


@triton.jit
def counted_in(ranks, first_row, end, first, second, third, fourth, BLOCK_SEARCH: tl.constexpr):
    """Count the scores of a block that reach four keys.

    Args:
        ranks: Pointer to the set's scores.
        first_row: The block's first row.
        end: One past its last.
        first: A key.
        second: A key.
        third: A key.
        fourth: A key.
        BLOCK_SEARCH: Scores that are looked at together, of which there are fewer than 65536 times as many.

    Returns:
        The counts of the first two and of the last two, as `two` puts them.
    """
    row = tl.arange(0, BLOCK_SEARCH)
    lower, upper = tl.zeros([BLOCK_SEARCH], tl.int32), tl.zeros([BLOCK_SEARCH], tl.int32)
    for tile in range(first_row, end, BLOCK_SEARCH):
        rank = tl.load(ranks + tile + row, mask=tile + row < end, other=float("-inf"))
        lower += (rank >= score_of(first)).to(tl.int32) + ((rank >= score_of(second)).to(tl.int32) << 16)
        upper += (rank >= score_of(third)).to(tl.int32) + ((rank >= score_of(fourth)).to(tl.int32) << 16)
    lower, upper = two(lower & 0xFFFF, (lower >> 16) & 0xFFFF), two(upper & 0xFFFF, (upper >> 16) & 0xFFFF)
    return tl.split(tl.sum(tl.join(lower, upper), 0))


@triton.jit
def narrowed_by(lo, lo_count, hi, hi_count, first, second, counts, k):
    """Narrow a range by what was counted at two keys.

    Args:
        lo: Key that at least k scores reach.
        lo_count: How many do.
        hi: Key that fewer reach.
        hi_count: How many do.
        first: A key.
        second: A key.
        counts: Scores that reach them, as `two` has it.
        k: Scores wanted.

    Returns:
        The four, narrowed.
    """
    at_first, at_second = (counts & MASK).to(tl.int32), (counts >> FIELD).to(tl.int32)
    lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, first, at_first, k)
    return narrowed(lo, lo_count, hi, hi_count, second, at_second, k)


@triton.jit
def search_together(ranks, first_row, end, own, sums, squares, wanted, word, chunks, BLOCK_SEARCH: tl.constexpr):
    """Find the k-th best score of all blocks of a set.

    Args:
        ranks: Pointer to the set's scores.
        first_row: The block's first row.
        end: One past its last.
        own: Scores of the block that can be chosen.
        sums: Their sum.
        squares: The sum of their squares.
        wanted: How many rows are wanted of the set.
        word: Three words of the set, and two for each step, of 80 at the most.
        chunks: C.
        BLOCK_SEARCH: As `counted_in` has it.

    Returns:
        Key that at least k scores reach, key that fewer reach, and room for those between: k is `wanted`, or all.
    """
    able, low_score, high_score = guessed(word, own, sums, squares, wanted, chunks)
    word += 3
    k = tl.minimum(wanted, able)
    lo, hi, lo_count, hi_count = able * 0 + LEAST, able * 0 + BEYOND, able, able * 0
    middle = middle_of(lo, hi)
    first, fourth = between(low_score, lo, hi, middle), between(high_score, lo, hi, middle)
    spread = score_of(fourth) - score_of(first)
    second = between(score_of(first) + spread * 0.375, lo, hi, middle)
    third = between(score_of(first) + spread * 0.625, lo, hi, middle)
    while (k > 0) & (lo_count != k) & (lo + 1 < hi):
        low, high = counted_in(ranks, first_row, end, first, second, third, fourth, BLOCK_SEARCH)
        tell(word, low, chunks)
        tell(word + 1, high, chunks)
        low, high = heard(word, low, chunks), heard(word + 1, high, chunks)
        word += 2
        field = lo_count - hi_count
        lo, lo_count, hi, hi_count = narrowed_by(lo, lo_count, hi, hi_count, first, second, low, k)
        lo, lo_count, hi, hi_count = narrowed_by(lo, lo_count, hi, hi_count, third, fourth, high, k)
        slow = (lo_count - hi_count) * 4 > field
        first, second, third, fourth = four_next(lo, hi, lo_count, hi_count, k, slow)
    return lo, hi, k - hi_count


@triton.jit
def counted_between(ranks, first_row, end, under, over, BLOCK_SEARCH: tl.constexpr):
    """Count the scores of a block that are chosen before others, and those that are equal.

    Args:
        ranks: Pointer to the set's scores.
        first_row: The block's first row.
        end: One past its last.
        under: Score that ties reach.
        over: Score that those above reach.
        BLOCK_SEARCH: Scores that are looked at together.

    Returns:
        Both counts, as `two` puts them.
    """
    row = tl.arange(0, BLOCK_SEARCH)
    both = tl.zeros([BLOCK_SEARCH], tl.int64)
    for tile in range(first_row, end, BLOCK_SEARCH):
        rank = tl.load(ranks + tile + row, mask=tile + row < end, other=float("-inf"))
        above = rank >= over
        both += two(above, (rank >= under) & (above == 0))
    return tl.sum(both, 0)


@triton.jit
def rows_before(word, mine, chunk, part, chunks, BLOCK_CHUNKS: tl.constexpr):
    """Tell the other blocks of a set what this one has, and learn what those before it have.

    Args:
        word: A word of each block of the set.
        mine: Rows above, and ties, as `two` puts them.
        chunk: Which block this is.
        part: How many blocks before it share its segment.
        chunks: C.
        BLOCK_CHUNKS: Power of two, at least C.

    Returns:
        The same of the blocks before it that share its segment, and of those before these.
    """
    beside, earlier = mine * 0, mine * 0
    if chunks > 1:
        tell(word + chunk, mine, chunks)
        other = tl.arange(0, BLOCK_CHUNKS)
        tallies = tl.load(word + other, mask=other < chunk, other=ARRIVAL, volatile=True)
        while tl.min(tallies, 0) == 0:
            tallies = tl.load(word + other, mask=other < chunk, other=ARRIVAL, volatile=True)
        # again, as in `select_topk.joint`: one warp may have seen what another, whose tallies are summed, has not
        tallies = tl.load(word + other, mask=other < chunk, other=0, volatile=True) & COUNTS
        beside = tl.sum(tl.where(other >= chunk - part, tallies, 0), 0)
        earlier = tl.sum(tl.where(other >= chunk - part, 0, tallies), 0)
    return beside, earlier


@triton.jit
def share_together(share, parts, word, top, whole, chosen, chunk, chunks, GROUP: tl.constexpr, LINES: tl.constexpr,
                   BLOCK_CHUNKS: tl.constexpr):  # fmt: skip
    """Write each head's share: the last block to arrive puts the weights of all together, in the order of the blocks.

    Args:
        share: Pointer to the shares of the set's heads.
        parts: Pointer to (C, LINES, 3) float32 of the set.
        word: A word of the set, zero before.
        top: (LINES,) what weights of each head are held against, finite.
        whole: (LINES,) sum of weights.
        chosen: (LINES,) the same of the rows chosen.
        chunk: Which block this is.
        chunks: C.
        GROUP: J.
        LINES: Power of two, at least J.
        BLOCK_CHUNKS: Power of two, at least C.
    """
    line = tl.arange(0, LINES)
    if chunks > 1:
        mine = parts + (chunk * LINES + line) * 3
        tl.store(mine, top)
        tl.store(mine + 1, whole)
        tl.store(mine + 2, chosen)
        # all threads have stored before one of them says so, to whoever acquires what it released
        tl.debug_barrier()
        arrived = tl.atomic_add(word, 1, sem="acq_rel")
        if arrived == chunks - 1:
            tl.debug_barrier()
            other = tl.arange(0, BLOCK_CHUNKS)[:, None]
            theirs, there = parts + (other * LINES + line[None, :]) * 3, other + line[None, :] * 0 < chunks
            tops = tl.load(theirs, mask=there, other=0.0 - HUGE, volatile=True)
            scale = tl.exp2((tops - tl.max(tops, 0)[None, :]) * LOG2_E)
            whole = tl.sum(tl.load(theirs + 1, mask=there, other=0.0, volatile=True) * scale, 0)
            chosen = tl.sum(tl.load(theirs + 2, mask=there, other=0.0, volatile=True) * scale, 0)
            tl.store(share + line, chosen / tl.where(whole == 0.0, 1.0, whole), mask=line < GROUP)
    else:
        tl.store(share + line, chosen / tl.where(whole == 0.0, 1.0, whole), mask=line < GROUP)
