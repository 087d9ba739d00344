"""Exact selection from rows too long for one block: several blocks hold a row in registers and search it together.

One launch. A step of the search counts at four keys, as in a row of one block; the blocks of a set add their counts
into one 64-bit word of a board for each pair of keys, with a number of arrivals in its highest byte, and read it until
all have arrived. What a word says needs no order of memory accesses beside it. Blocks take their places by a ticket, in
the order in which they start, so that whoever waits, waits for blocks that have started before it or start next: a GPU
that holds the blocks of one set at once cannot stall.

Triton's interpreter runs one block after the other, which may not wait: there one block holds the whole row.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result, C blocks (chunks) of a row.
"""

import torch
import triton
import triton.language as tl

from ...interpreter import interpreted
from ...overlap.fused import overlap, start_after_others
from ...tiling import multiprocessors, power_of_2
from ..four.fused import counted_at_four, four_first, four_next, moments, narrowed
from ..search.fused import BEYOND, LEAST, between, middle_of, ordered_key, score_of

# Of a word: two counts of 28 bits, and arrivals. A count is below 2^28 as rows are.
FIELD, ARRIVALS = tl.constexpr(28), tl.constexpr(56)
MASK = tl.constexpr((1 << 28) - 1)
# Two steps quarter the field, of at most 2^28 rows, or halve the range of keys: 14 + 2 * 32 steps at the most.
STEPS = 80
CHUNK_ROWS, MOST_CHUNKS = 4096, 64
MOST_ROWS = MOST_CHUNKS * 32768


@triton.jit
def post(word, value, CHUNKS: tl.constexpr):
    """Add a block's number to a word of the board.

    Args:
        word: Pointer to the word, zero before; each is used once.
        value: int64 below 2^56, also in sum.
        CHUNKS: C; alone there is nobody to tell.
    """
    if CHUNKS > 1:
        tl.atomic_add(word, value + (1 << ARRIVALS), sem="relaxed")


@triton.jit
def collect(word, value, CHUNKS: tl.constexpr):
    """Wait until all blocks of a set have posted.

    Args:
        word: Pointer to the word.
        value: What this block has posted.
        CHUNKS: C; alone there is nothing to wait for.

    Returns:
        The sum.
    """
    if CHUNKS == 1:
        return value
    seen = tl.load(word, volatile=True)
    while (seen >> ARRIVALS) < CHUNKS:
        seen = tl.load(word, volatile=True)
    return seen & ((1 << ARRIVALS) - 1)


@triton.jit
def two(lower, upper):
    """Put two counts into one number.

    Args:
        lower: One.
        upper: The other.

    Returns:
        int64.
    """
    return lower.to(tl.int64) | (upper.to(tl.int64) << FIELD)


@triton.jit
def counted(first, second, WIDE: tl.constexpr):
    """Count two truths over a chunk.

    Args:
        first: One, for each row.
        second: The other.
        WIDE: Whether there may be more than 65535 rows, as in the interpreter, where one block holds all.

    Returns:
        Both counts, as `two` puts them.
    """
    if WIDE:
        return tl.sum(first.to(tl.int64) + (second.to(tl.int64) << FIELD), 0)
    both = tl.sum(first.to(tl.int32) + (second.to(tl.int32) << 16), 0)
    return two(both & 0xFFFF, (both >> 16) & 0xFFFF)


@triton.jit
def counted_at(score, first, second, third, fourth, WIDE: tl.constexpr):
    """Count the scores of a chunk that reach four keys.

    Args:
        score: The scores.
        first: A key.
        second: A key.
        third: A key.
        fourth: A key.
        WIDE: As `counted` has it.

    Returns:
        The counts of the first two and of the last two, as `two` puts them.
    """
    if WIDE:
        return (
            counted(score >= score_of(first), score >= score_of(second), WIDE),
            counted(score >= score_of(third), score >= score_of(fourth), WIDE),
        )
    lower, upper = counted_at_four(score, first, second, third, fourth)
    return two(lower & 0xFFFF, (lower >> 16) & 0xFFFF), two(upper & 0xFFFF, (upper >> 16) & 0xFFFF)


@triton.jit
def lifted(score, some):
    """Make a guess a number that can be averaged over blocks.

    Args:
        score: The guess.
        some: Whether the block has one.

    Returns:
        Its key, int64 and not negative; 0 if there is none.
    """
    return tl.where(some, ordered_key(score).to(tl.int64) + (1 << 31), 0)


@triton.jit
def lowered(total, blocks):
    """Average keys that were lifted.

    Args:
        total: Their sum.
        blocks: How many have one, at least 1.

    Returns:
        The score of the mean key.
    """
    return score_of((total // blocks - (1 << 31)).to(tl.int32))


@triton.jit
def select_joint_kernel(s_ptr, k_ptr, board_ptr, index_ptr, count_ptr, rows, width, WORDS: tl.constexpr,
                        SETS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, PART: tl.constexpr,
                        BLOCK_CHUNKS: tl.constexpr, BLOCK_TAIL: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Choose the rows of one chunk of a set; the grid is (B * N * C,).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        board_ptr: (1 + B * N * WORDS,) int64, zero: a counter of tickets, and the words of each set.
        index_ptr: (B, N, K) int32 result.
        count_ptr: (B, N) int32 result.
        rows: S.
        width: K.
        WORDS: Words of a set: C that tell the chunks' rows, four, and two for each step.
        SETS: N.
        CHUNK: Rows of a chunk, a power of two of at most 32768.
        CHUNKS: C.
        PART: Rows whose places are found at once: a power of two, less than 32768.
        BLOCK_CHUNKS: Power of two, at least C.
        BLOCK_TAIL: Power of two, at least K / C.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    ticket = tl.atomic_add(board_ptr, 1, sem="relaxed").to(tl.int32)
    pair, chunk = ticket // CHUNKS, ticket % CHUNKS
    told = board_ptr + 1 + pair.to(tl.int64) * WORDS
    word = told + CHUNKS
    s_set = s_ptr + pair.to(tl.int64) * rows
    row = chunk * CHUNK + tl.arange(0, CHUNK)
    score = tl.load(s_set + row, mask=row < rows, other=float("-inf"))
    own, sums, squares, _, _ = moments(score)
    share = tl.maximum(own, 1)
    mean = sums / share
    deviation = tl.sqrt(tl.maximum(squares / share - mean * mean, 0.0))
    wanted = tl.minimum(tl.load(k_ptr + pair // SETS), width)
    # Guesses are sent with the count, and made as if all chunks had as many scores as this one.
    outer, _, _, inner = four_first(mean, deviation, share * CHUNKS, tl.maximum(tl.minimum(wanted, share * CHUNKS), 1))
    some = own > 0
    known, least, most = two(own, some.to(tl.int32)), lifted(outer, some), lifted(inner, some)
    post(word, known, CHUNKS)
    post(word + 1, least, CHUNKS)
    post(word + 2, most, CHUNKS)
    known = collect(word, known, CHUNKS)
    least, most = collect(word + 1, least, CHUNKS), collect(word + 2, most, CHUNKS)
    able, blocks = (known & MASK).to(tl.int32), tl.maximum((known >> FIELD).to(tl.int32), 1)
    k = tl.maximum(tl.minimum(wanted, able), 0)
    lo, hi, lo_count, hi_count = able * 0 + LEAST, able * 0 + BEYOND, able, able * 0
    middle = middle_of(lo, hi)
    first, fourth = between(lowered(least, blocks), lo, hi, middle), between(lowered(most, blocks), lo, hi, middle)
    spread = score_of(fourth) - score_of(first)
    second = between(score_of(first) + spread * 0.375, lo, hi, middle)
    third = between(score_of(first) + spread * 0.625, lo, hi, middle)
    word += 3
    while (k > 0) & (lo_count != k) & (lo + 1 < hi):
        low_counts, high_counts = counted_at(score, first, second, third, fourth, CHUNK > 32768)
        post(word, low_counts, CHUNKS)
        post(word + 1, high_counts, CHUNKS)
        low_counts, high_counts = collect(word, low_counts, CHUNKS), collect(word + 1, high_counts, CHUNKS)
        word += 2
        field = lo_count - hi_count
        at_first, at_second = (low_counts & MASK).to(tl.int32), (low_counts >> FIELD).to(tl.int32)
        at_third, at_fourth = (high_counts & MASK).to(tl.int32), (high_counts >> FIELD).to(tl.int32)
        lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, first, at_first, k)
        lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, second, at_second, k)
        lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, third, at_third, k)
        lo, lo_count, hi, hi_count = narrowed(lo, lo_count, hi, hi_count, fourth, at_fourth, k)
        slow = (lo_count - hi_count) * 4 > field
        first, second, third, fourth = four_next(lo, hi, lo_count, hi_count, k, slow)
    lo_score, hi_score = score_of(lo), score_of(hi)
    room = k - hi_count
    reach = score >= hi_score
    mine = counted(reach, (score >= lo_score) & (score > float("-inf")) & (reach == 0), CHUNK > 32768)
    first_above, first_tie = able * 0, able * 0
    if CHUNKS > 1:
        post(told + chunk, mine, CHUNKS)
        other = tl.arange(0, BLOCK_CHUNKS)
        tallies = tl.load(told + other, mask=other < chunk, other=1 << ARRIVALS, volatile=True)
        while tl.min(tallies, 0) == 0:
            tallies = tl.load(told + other, mask=other < chunk, other=1 << ARRIVALS, volatile=True)
        before = tl.sum(tallies & ((1 << ARRIVALS) - 1), 0)
        first_above, first_tie = (before & MASK).to(tl.int32), (before >> FIELD).to(tl.int32)
    out = index_ptr + pair.to(tl.int64) * width
    for part in range(0, CHUNK, PART):
        row_in = chunk * CHUNK + part + tl.arange(0, PART)
        score_in = tl.load(s_set + row_in, mask=row_in < rows, other=float("-inf"))
        above = score_in >= hi_score
        tie = (score_in >= lo_score) & (score_in > float("-inf")) & (above == 0)
        packed = above.to(tl.int32) + (tie.to(tl.int32) << 16)
        through = tl.cumsum(packed, 0)
        ahead = through - packed
        ties_ahead = first_tie + (ahead >> 16)
        place = first_above + (ahead & 0xFFFF) + tl.minimum(ties_ahead, room)
        tl.store(out + place, row_in, mask=above | (tie & (ties_ahead < room)))
        total = tl.max(through, 0) if PART < CHUNK else 0
        first_above += total & 0xFFFF
        first_tie += total >> 16
    slot = chunk * BLOCK_TAIL + tl.arange(0, BLOCK_TAIL)
    tl.store(out + slot, tl.full([BLOCK_TAIL], -1, tl.int32), mask=(slot >= k) & (slot < width))
    if chunk == 0:
        tl.store(count_ptr + pair, k)


def select_joint(
    s_BNS: torch.Tensor,
    k_B: torch.Tensor,
    index_BNK: torch.Tensor,
    count_BN: torch.Tensor,
    chunk_rows: int = 0,
    num_warps: int = 4,
    part_rows: int = 4096,
) -> None:
    """Choose rows from sets of up to two million rows.

    Args:
        s_BNS: (B, N, S) float32 scores, contiguous.
        k_B: (B,) int32, rows wanted of each sequence.
        index_BNK: (B, N, K) int32, contiguous, as `select_topk` returns it; written.
        count_BN: (B, N) int32, contiguous; written.
        chunk_rows: Rows of one block; chosen from S if 0.
        num_warps: Warps of a block.
        part_rows: Rows whose places are found at once.

    Raises:
        ValueError: If there are more than 2097152 rows.
    """
    (batch, sets, rows), width = s_BNS.shape, index_BNK.shape[2]
    if rows > MOST_ROWS:
        raise ValueError(f"expected at most {MOST_ROWS} rows to choose from, got {rows}")
    # The blocks of a set wait for each other, so the GPU must hold them at once.
    chunks = min(MOST_CHUNKS, multiprocessors(s_BNS.device)) if s_BNS.is_cuda else MOST_CHUNKS
    chunk_rows = chunk_rows or max(CHUNK_ROWS, power_of_2(triton.cdiv(rows, chunks)))
    if interpreted():
        chunk_rows = power_of_2(rows)
    chunks = triton.cdiv(rows, chunk_rows)
    words = chunks + 3 + 2 * STEPS
    board = torch.zeros(1 + batch * sets * words, dtype=torch.int64, device=s_BNS.device)
    select_joint_kernel[(batch * sets * chunks,)](
        s_BNS, k_B, board, index_BNK, count_BN, rows, width, WORDS=words, SETS=sets, CHUNK=chunk_rows, CHUNKS=chunks,
        PART=min(part_rows, chunk_rows), BLOCK_CHUNKS=power_of_2(chunks),
        BLOCK_TAIL=power_of_2(triton.cdiv(width, chunks)), num_warps=num_warps, **overlap(s_BNS.device),
    )  # fmt: skip
