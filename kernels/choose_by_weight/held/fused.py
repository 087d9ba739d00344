"""Weights of the rows of a set, summed over its heads into the registers of one block, as its choice wants them.

Shape legend: J heads of a set, X parts of a sum, T threads of a block, F = 4 neighbours that a thread holds.
"""

import triton
import triton.language as tl

from ...select_topk.chosen.fused import held_scores
from ...select_topk.search.fused import NEIGHBOURS

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def joined_parts(part_ptr, set_head, GROUP: tl.constexpr, SPLITS: tl.constexpr, BLOCK_GROUP: tl.constexpr,
                 BLOCK_SPLITS: tl.constexpr):  # fmt: skip
    """Put together what the parts of the rows tell of each head.

    Args:
        part_ptr: (B * H, X, 2) float32: largest score, sum of exp(score - it).
        set_head: Number of the set's first head.
        GROUP: J.
        SPLITS: X.
        BLOCK_GROUP: Power of two, at least J.
        BLOCK_SPLITS: Power of two, at least X.

    Returns:
        (BLOCK_GROUP,) a score near the largest, the sum of exp(score - it), and the log of the sum of exp(score).
    """
    member, split = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_SPLITS)
    known = (member < GROUP)[:, None] & (split < SPLITS)[None, :]
    parts = part_ptr + ((set_head + member)[:, None] * SPLITS + split[None, :]) * 2
    tops = tl.load(parts, mask=known, other=float("-inf"))
    sums = tl.load(parts + 1, mask=known, other=0.0)
    top = tl.max(tops, 1)
    base = tl.where(top == float("-inf"), 0.0, top)
    # Threads that share a sum must have the same bits of it, or equal scores get unequal weights: the size of a product
    # is no product, which each would join with its own addition, rounded once.
    total = tl.sum(tl.abs(sums * tl.exp2((tops - base[:, None]) * LOG2_E)), 1)
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    return base, total, tl.where(empty, float("-inf"), base + tl.log2(total) / LOG2_E)


@triton.jit
def of_member(value, at, BLOCK_GROUP: tl.constexpr):
    """Take what belongs to one head.

    Args:
        value: (BLOCK_GROUP,) numbers.
        at: Which.
        BLOCK_GROUP: Power of two.

    Returns:
        The number.
    """
    return tl.sum(tl.where(tl.arange(0, BLOCK_GROUP) == at, value, 0.0), 0)


@triton.jit
def weights_of(score, base, share):
    """Turn scores of a head into weights.

    Args:
        score: Scores.
        base: A score near the largest.
        share: One over the sum of exp(score - base).

    Returns:
        Weights.
    """
    return tl.exp2((score - base) * LOG2_E) * share


@triton.jit
def summed_weights(s_set, base, share, first_row, rows, pitch, SIZE: tl.constexpr, GROUP: tl.constexpr,
                   BLOCK_GROUP: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """Sum the weights of some rows over the heads of a set.

    Args:
        s_set: Where the scores of the set's first head are.
        base: (BLOCK_GROUP,) as `weights_of` takes them.
        share: (BLOCK_GROUP,) as `weights_of` takes them.
        first_row: Number of the first of these rows, a multiple of four.
        rows: S.
        pitch: S, as a multiple of four to the compiler where it is one.
        SIZE: How many rows, a power of two.
        GROUP: J.
        BLOCK_GROUP: Power of two, at least J.
        ALIGNED: As `held_scores` has it.

    Returns:
        (SIZE,) sums, zero beyond the last row.
    """
    if GROUP == 1:
        score = held_scores(s_set, first_row, rows, SIZE, ALIGNED)
        return weights_of(score, of_member(base, 0, BLOCK_GROUP), of_member(share, 0, BLOCK_GROUP))
    total = tl.zeros([SIZE], tl.float32)
    for at in tl.range(0, GROUP, num_stages=1):
        score = held_scores(s_set + at * pitch, first_row, rows, SIZE, ALIGNED)
        total += weights_of(score, of_member(base, at, BLOCK_GROUP), of_member(share, at, BLOCK_GROUP))
    return total


@triton.jit
def forced(rank, first_row, lo, hi, local, rows, SIZE: tl.constexpr):
    """Put the last visible rows before all others, and leave hidden ones out.

    Args:
        rank: (SIZE,) sums of weights.
        first_row: Number of the first of these rows.
        lo: First visible row.
        hi: One past the last visible row.
        local: How many of the last visible rows are forced.
        rows: S.
        SIZE: How many rows.

    Returns:
        (SIZE,) sums, +inf for local rows, -inf for rows that are not visible.
    """
    row = first_row + tl.arange(0, SIZE)
    rank = tl.where(row >= hi - local, float("inf"), rank)
    return tl.where((row >= lo) & (row < tl.minimum(hi, rows)), rank, float("-inf"))


@triton.jit
def sampled(rank, first_chunk, chunks, THREADS: tl.constexpr):
    """Take some of the ranks from the registers they are in: of each thread four neighbours, here and there.

    Args:
        rank: (C * T * F,) ranks, as a load deals them out.
        first_chunk: How many chunks of T * F rows lie before these.
        chunks: How many chunks have rows altogether.
        THREADS: T.

    Returns:
        (T * F,) ranks, -inf for threads whose sample lies elsewhere.
    """
    WIDE: tl.constexpr = THREADS * NEIGHBOURS
    CHUNKS: tl.constexpr = rank.shape[0] // WIDE
    mine = (tl.arange(0, WIDE) // NEIGHBOURS) % chunks - first_chunk
    table = tl.reshape(rank, [CHUNKS, WIDE])
    return tl.max(tl.where(tl.arange(0, CHUNKS)[:, None] == mine[None, :], table, float("-inf")), 0)
