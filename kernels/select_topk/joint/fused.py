"""Exact selection from rows too long for one block, or from few sets: several blocks hold a row and search it together.

One launch. A step of the search counts at four keys, where one block alone counts at two; the blocks of a set add their
counts into one 64-bit word of a board for each pair of keys, with a number of arrivals in its highest byte, and read it
until all have arrived. What a word says needs no order of memory accesses beside it. Blocks take their places by a
ticket, in the order in which they start, so that whoever waits, waits for blocks that have started before it or start
next: of a launch at most C - 1 blocks wait for one that has not started. An SM holds two blocks at least, of 128
threads with 255 registers at the most, and no set has more blocks than the GPU has SMs: two launches at once, as of two
halves on two streams, leave at least two places free on any GPU, and cannot stall. L launches cannot where L * (C - 1)
is less than twice the SMs: four of 64 blocks a set on the 132 SMs of an H200, and 29 of the ten at most that rows of up
to 40960 have. Of more than four warps an SM may hold one block.

Triton's interpreter runs one block after the other, which may not wait: there one block holds the whole row.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result, C blocks (chunks) of a row.
"""

import torch
import triton
import triton.language as tl

from ...interpreter import interpreted
from ...overlap.fused import overlap, start_after_others
from ...tiling import multiprocessors, power_of_2
from ..board.fused import ARRIVAL, COUNTS, FIELD, MASK, counted, post
from ..chosen.fused import FEW_TIES, held_scores, without_last
from ..places.fused import GROUP_ROWS, grouped, write_reached, write_rows
from ..rivals.fused import LINE, rivals_ahead
from ..search.fused import score_of
from ..together.fused import guessed, search_jointly

# Two steps quarter the field, of at most 2^28 rows, or halve the range of keys: 14 + 2 * 32 steps at the most.
STEPS = 80
CHUNK_ROWS, MOST_CHUNKS = 4096, 64
# Four groups of rows, of which one sum tells the places.
LEAST_ROWS = 4 * GROUP_ROWS.value
MOST_ROWS = MOST_CHUNKS * 32768


@triton.jit
def rows_ahead(tallied, mine, chunk, CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr):
    """Tell the other blocks of a set what this one has, and learn what those before it have.

    Args:
        tallied: Where the set's tallies are.
        mine: Rows above, and ties, as `two` puts them.
        chunk: Which block this is.
        CHUNKS: C.
        BLOCK_CHUNKS: Power of two, at least C.

    Returns:
        Rows above, and ties, of the blocks before this.
    """
    post(tallied + chunk, mine, CHUNKS)
    other = tl.arange(0, BLOCK_CHUNKS)
    tallies = tl.load(tallied + other, mask=other < chunk, other=ARRIVAL, volatile=True)
    while tl.min(tallies, 0) == 0:
        tallies = tl.load(tallied + other, mask=other < chunk, other=ARRIVAL, volatile=True)
    # Above 32 tallies several warps hold each, every one by a load of its own, and the loop ends when one of them has
    # seen it: another may still hold a zero, and the sum take that. The barriers of the loop's minimum order this load
    # after whatever any thread has seen, and what has been posted stays.
    tallies = tl.load(tallied + other, mask=other < chunk, other=0, volatile=True)
    before = tl.sum(tallies & COUNTS, 0)
    return (before & MASK).to(tl.int32), (before >> FIELD).to(tl.int32)


@triton.jit
def select_joint_kernel(s_ptr, k_ptr, told_ptr, board_ptr, index_ptr, count_ptr, rows, width, WORDS: tl.constexpr,
                        SETS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
                        GROUPS: tl.constexpr, ALIGNED: tl.constexpr, DIRECT: tl.constexpr, THREADS: tl.constexpr,
                        BLOCK_CHUNKS: tl.constexpr, BLOCK_LINES: tl.constexpr, BLOCK_TAIL: tl.constexpr,
                        PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Choose the rows of one chunk of a set; the grid is (B * N * C,).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        told_ptr: (B, N, PARTS, 4) float32, what is known of the scores, as `told` has it; not used if PARTS is 0.
        board_ptr: (1 + B * N * WORDS,) int64, zero: a counter of tickets, and the words of each set.
        index_ptr: (B, N, K) int32 result.
        count_ptr: (B, N) int32 result.
        rows: S.
        width: K.
        WORDS: Words of a set: C that tell the chunks' rows, three of guesses, two for each of STEPS, and C lines.
        SETS: N.
        CHUNK: Rows of a chunk, a power of two of at most 32768.
        CHUNKS: C.
        GROUPS: Of rows that are read again at once, if some have equal scores: a power of two, at least 4.
        ALIGNED: As `held_scores` has it.
        DIRECT: As `scatter` has it.
        THREADS: Of the block.
        BLOCK_CHUNKS: Power of two, at least C.
        BLOCK_LINES: As `hear_rivals` has it.
        BLOCK_TAIL: Power of two, at least K / C.
        PARTS: Blocks that have told of a set, or 0.
        BLOCK_PARTS: Power of two, at least PARTS.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    ticket = tl.atomic_add(board_ptr, 1, sem="relaxed").to(tl.int32)
    pair, chunk = ticket // CHUNKS, ticket % CHUNKS
    tallied = board_ptr + 1 + pair.to(tl.int64) * WORDS
    pitch = rows // 4 * 4 if ALIGNED else rows
    s_set = s_ptr + pair.to(tl.int64) * pitch
    score = held_scores(s_set, chunk * CHUNK, rows, CHUNK, ALIGNED)
    wanted = tl.minimum(tl.load(k_ptr + pair // SETS), width)
    able, low_score, high_score, word = guessed(
        score, wanted, tallied + CHUNKS, told_ptr, pair, CHUNKS, PARTS, BLOCK_PARTS
    )
    k, lo, hi, lo_count, hi_count, rivals, first_above, base = search_jointly(
        score, wanted, able, low_score, high_score, word, tallied + (WORDS - CHUNKS * LINE), chunk, CHUNKS, CHUNK,
        CHUNK // GROUP_ROWS, DIRECT, THREADS, BLOCK_LINES,
    )  # fmt: skip
    lo_score, hi_score = score_of(lo), score_of(hi)
    room, first_tie = k - hi_count, k * 0
    if CHUNKS > 1:
        if base >= 0:
            above, first_tie = rivals_ahead(rivals, chunk, lo_score, hi_score, BLOCK_LINES)
            first_above += above
        else:
            reach = score >= hi_score
            mine = counted(reach, (score >= lo_score) & (score > float("-inf")) & (reach == 0), False)
            first_above, first_tie = rows_ahead(tallied, mine, chunk, CHUNKS, BLOCK_CHUNKS)
    out = index_ptr + pair.to(tl.int64) * width
    place = first_above + tl.minimum(first_tie, room)
    excess = k * 0
    if (lo_count != k) & (k > 0):
        # of a few equal scores too many, which is common, none needs to be read again
        ties = tl.sum(((score >= lo_score) & ((score >= hi_score) == 0)).to(tl.int32), 0)
        excess = tl.minimum(tl.maximum(first_tie + ties - room, 0), ties)
        few = tl.where(excess <= FEW_TIES, excess, 0)
        score, _rest = without_last(score, score, lo_score, few, 0, CHUNK, 0)
    if (k > 0) & (excess <= FEW_TIES):
        write_reached(out, score, chunk * CHUNK, lo, place, CHUNK // GROUP_ROWS, DIRECT)
    else:
        for part in range(0, CHUNK, GROUPS * GROUP_ROWS):
            score_in = held_scores(s_set, chunk * CHUNK + part, rows, GROUPS * GROUP_ROWS, ALIGNED)
            place, first_tie = write_rows(out, grouped(score_in, GROUPS), chunk * CHUNK + part, lo_score, hi_score,
                                          lo_count - k, room, place, first_tie, GROUPS, DIRECT)  # fmt: skip
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
    part_rows: int = 1024,
    told_BNX4: torch.Tensor | None = None,
    board: torch.Tensor | None = None,
) -> None:
    """Choose rows from sets of up to two million rows.

    Args:
        s_BNS: (B, N, S) float32 scores, contiguous.
        k_B: (B,) int32, rows wanted of each sequence.
        index_BNK: (B, N, K) int32, contiguous, as `select_topk` returns it; written.
        count_BN: (B, N) int32, contiguous; written.
        chunk_rows: Rows of one block; chosen from S if 0.
        num_warps: Warps of a block.
        part_rows: Rows that are read again at once, if some have equal scores.
        told_BNX4: What `scores_told` tells of the scores, if known.
        board: At least `board_words` int64 zeros; new ones if absent.

    Raises:
        ValueError: If there are more than 2097152 rows, `chunk_rows` makes more blocks than may wait for each other
            or is below 512, or `board` has too few words.
    """
    (batch, sets, rows), width = s_BNS.shape, index_BNK.shape[2]
    if rows > MOST_ROWS:
        raise ValueError(f"expected at most {MOST_ROWS} rows to choose from, got {rows}")
    chunk_rows = chunk_rows if chunk_rows and not interpreted() else chunk_of(rows, s_BNS.device)
    chunks = triton.cdiv(rows, chunk_rows)
    if chunks > (most := most_chunks(s_BNS.device)):
        raise ValueError(f"expected at most {most} blocks that share a row, got {chunks}; raise chunk_rows")
    if chunk_rows < LEAST_ROWS:
        raise ValueError(f"expected at least {LEAST_ROWS} rows of a block, got {chunk_rows}")
    words = board_words(batch * sets, rows, s_BNS.device, chunk_rows)
    if board is None:
        board = torch.zeros(words, dtype=torch.int64, device=s_BNS.device)
    if board.numel() < words:
        raise ValueError(f"expected a board of at least {words} words, got {board.numel()}; see board_words")
    parts = 0 if told_BNX4 is None else told_BNX4.shape[2]
    given = s_BNS, k_B, s_BNS if told_BNX4 is None else told_BNX4, board
    select_joint_kernel[(batch * sets * chunks,)](
        *given, index_BNK, count_BN, rows, width, WORDS=set_words(chunks), SETS=sets, CHUNK=chunk_rows, CHUNKS=chunks,
        GROUPS=max(4, min(part_rows, chunk_rows) // GROUP_ROWS.value), ALIGNED=rows % 4 == 0, DIRECT=not interpreted(),
        THREADS=min(32 * num_warps, chunk_rows // 4), BLOCK_CHUNKS=power_of_2(chunks),
        BLOCK_LINES=max(32 * num_warps, power_of_2(chunks) * LINE.value),
        BLOCK_TAIL=power_of_2(triton.cdiv(width, chunks)), PARTS=parts, BLOCK_PARTS=power_of_2(max(1, parts)),
        num_warps=num_warps, **overlap(s_BNS.device),
    )  # fmt: skip


def most_chunks(device: torch.device) -> int:
    """Count the blocks of a set that may wait for each other beside those of another launch.

    Args:
        device: Where.

    Returns:
        The most that C may be.
    """
    return min(MOST_CHUNKS, multiprocessors(device)) if device.type == "cuda" else MOST_CHUNKS


def chunk_of(rows: int, device: torch.device) -> int:
    """Choose how many rows a block holds.

    Args:
        rows: S.
        device: Where.

    Returns:
        A power of two; under the interpreter, where no block may wait, at least S.
    """
    if interpreted():
        return max(LEAST_ROWS, power_of_2(rows))
    return max(CHUNK_ROWS, power_of_2(triton.cdiv(rows, most_chunks(device))))


def set_words(chunks: int) -> int:
    """Count the words of a set.

    Args:
        chunks: C.

    Returns:
        Of each chunk one and a line, of guesses three, and of each step two.
    """
    return chunks * (1 + LINE.value) + 3 + 2 * STEPS


def board_words(sets: int, rows: int, device: torch.device, chunk_rows: int = 0) -> int:
    """Count the words through which the blocks of all sets tell each other their counts.

    Args:
        sets: Of all texts.
        rows: S.
        device: Where.
        chunk_rows: Rows of one block; those of `chunk_of` if 0.

    Returns:
        The words.
    """
    return 1 + sets * set_words(triton.cdiv(rows, chunk_rows or chunk_of(rows, device)))
