"""Exact selection from rows too long for one block: several blocks share a row and narrow the search together.

Each launch counts, in every chunk, the scores at or above sixteen keys between two bounds; the next launch adds the
counts up and moves the bounds. Nothing waits inside a kernel and nothing returns to the host: one launch for the moments
of the scores, six that narrow, one that tallies, one that writes. Should the bounds not have met by then, as with long tails or many
equal scores, the blocks that tally end the search themselves, each for itself: slower, and as exact.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result, C blocks (chunks) of a row,
P keys tried at once.
"""

from functools import partial

import torch
import triton
import triton.language as tl

from ...overlap import overlap, start_after_others
from ...tiling import power_of_2
from ..search import between, first_guesses, middle_of, next_guesses, ordered_key, score_of

TRIED = tl.constexpr(16)
ROUNDS = 6
# Every block adds up the counts of all blocks of its row: longer rows take larger chunks.
CHUNK_ROWS, LARGE_CHUNK_ROWS = 8192, 16384
LARGE_ROWS = 2**18


@triton.jit
def load_chunk(s_ptr, pair, chunk, rows, CHUNK: tl.constexpr):
    """Load the scores of one chunk; beyond the end of the row they can never be chosen.

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        pair: Which set.
        chunk: Which chunk.
        rows: S.
        CHUNK: Rows of a chunk.

    Returns:
        The row numbers and the scores.
    """
    row = chunk * CHUNK + tl.arange(0, CHUNK)
    return row, tl.load(s_ptr + pair.to(tl.int64) * rows + row, mask=row < rows, other=float("-inf"))


@triton.jit
def moments_kernel(s_ptr, moment_ptr, rows, pairs, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
                   OVERLAP: tl.constexpr):  # fmt: skip
    """Find the number, sum, sum of squares, least and greatest of the scores of each chunk; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        moment_ptr: (5, B * N, C) float32 result.
        rows: S.
        pairs: B * N.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    _, score = load_chunk(s_ptr, pair, chunk, rows, CHUNK)
    usable = score > float("-inf")
    seen = tl.where(usable, score, 0.0)
    place, step = moment_ptr + pair * CHUNKS + chunk, pairs * CHUNKS
    tl.store(place, tl.sum(usable.to(tl.float32), 0))
    tl.store(place + step, tl.sum(seen, 0))
    tl.store(place + 2 * step, tl.sum(seen * seen, 0))
    tl.store(place + 3 * step, tl.min(tl.where(usable, score, float("inf")), 0))
    tl.store(place + 4 * step, tl.max(tl.where(usable, score, float("-inf")), 0))


@triton.jit
def first_keys(moment_ptr, k_ptr, pair, pairs, width, SETS: tl.constexpr, CHUNKS: tl.constexpr,
               BLOCK_CHUNKS: tl.constexpr):  # fmt: skip
    """Set the bounds to all scores, and choose keys near where the k-th would lie if scores were normal.

    Args:
        moment_ptr: (5, B * N, C) moments.
        k_ptr: (B,) rows wanted.
        pair: Which set.
        pairs: B * N.
        width: K.
        SETS: N.
        CHUNKS: C.
        BLOCK_CHUNKS: Power of two, at least C.

    Returns:
        Bounds, counts at both, rows wanted, and (16,) keys.
    """
    chunk = tl.arange(0, BLOCK_CHUNKS)
    place, step, mask = moment_ptr + pair * CHUNKS + chunk, pairs * CHUNKS, chunk < CHUNKS
    able = tl.sum(tl.load(place, mask=mask, other=0.0).to(tl.int32), 0)
    many = tl.maximum(able, 1)
    mean = tl.sum(tl.load(place + step, mask=mask, other=0.0), 0) / many
    square = tl.sum(tl.load(place + 2 * step, mask=mask, other=0.0), 0) / many
    deviation = tl.sqrt(tl.maximum(square - mean * mean, 0.0))
    lo = ordered_key(tl.min(tl.load(place + 3 * step, mask=mask, other=float("inf")), 0))
    hi = ordered_key(tl.max(tl.load(place + 4 * step, mask=mask, other=float("-inf")), 0)) + 1
    k = tl.maximum(tl.minimum(tl.minimum(tl.load(k_ptr + pair // SETS), able), width), 0)
    low, high = first_guesses(mean, deviation, many, k)
    # Ten guesses over twice the margin of chance, and three on either side in case scores are not normal.
    order = tl.arange(0, TRIED).to(tl.float32) - 7.5
    far = tl.maximum(tl.abs(order) - 4.5, 0.0)
    off = order * (high - low) * 0.2 + tl.where(order > 0.0, far, 0.0 - far) * deviation * 0.2
    keys = between((low + high) * 0.5 + off, lo, hi, middle_of(lo, hi))
    return lo, hi, able, able * 0, k, keys


@triton.jit
def narrow(keys, counts, lo, hi, lo_count, hi_count, k):
    """Move the bounds to the nearest keys that were tried.

    Args:
        keys: (16,) keys.
        counts: (16,) scores at or above each.
        lo: Key that keeps at least k.
        hi: Key that keeps fewer.
        lo_count: Keys at or above lo.
        hi_count: Keys at or above hi.
        k: Rows wanted.

    Returns:
        The new bounds and the counts at both.
    """
    enough = counts >= k
    lo = tl.maximum(lo, tl.max(tl.where(enough, keys, lo), 0))
    hi = tl.minimum(hi, tl.min(tl.where(enough, hi, keys), 0))
    lo_count = tl.minimum(lo_count, tl.min(tl.where(enough, counts, lo_count), 0))
    hi_count = tl.maximum(hi_count, tl.max(tl.where(enough, hi_count, counts), 0))
    return lo, hi, lo_count, hi_count


@triton.jit
def last_bounds(state_ptr, tried_ptr, count_ptr, pair, pairs, LEVEL: tl.constexpr, CHUNKS: tl.constexpr,
                BLOCK_CHUNKS: tl.constexpr):  # fmt: skip
    """Add up what the launch before counted, and move the bounds.

    Args:
        state_ptr: (6, B * N, 5) bounds, counts at both and rows wanted.
        tried_ptr: (6, B * N, 16) keys.
        count_ptr: (6, B * N, C, 16) counts of each chunk.
        pair: Which set.
        pairs: B * N.
        LEVEL: Number of the launch that counted.
        CHUNKS: C.
        BLOCK_CHUNKS: Power of two, at least C.

    Returns:
        The new bounds, the counts at both, and rows wanted.
    """
    state = state_ptr + (LEVEL * pairs + pair) * 5
    lo, hi, lo_count, hi_count = tl.load(state), tl.load(state + 1), tl.load(state + 2), tl.load(state + 3)
    k = tl.load(state + 4)
    order, chunk = tl.arange(0, TRIED), tl.arange(0, BLOCK_CHUNKS)
    keys = tl.load(tried_ptr + (LEVEL * pairs + pair) * TRIED + order)
    place = ((LEVEL * pairs + pair) * CHUNKS + chunk[:, None]) * TRIED + order[None, :]
    counts = tl.sum(tl.load(count_ptr + place, mask=(chunk < CHUNKS)[:, None], other=0), 0)
    lo, hi, lo_count, hi_count = narrow(keys, counts, lo, hi, lo_count, hi_count, k)
    return lo, hi, lo_count, hi_count, k


@triton.jit
def narrow_kernel(s_ptr, k_ptr, moment_ptr, state_ptr, tried_ptr, count_ptr, rows, width, pairs, SETS: tl.constexpr,
                  LEVEL: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr,
                  OVERLAP: tl.constexpr):  # fmt: skip
    """Count the scores of each chunk at or above sixteen keys between the bounds; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        moment_ptr: (5, B * N, C) moments.
        state_ptr: (6, B * N, 5) bounds, counts at both and rows wanted.
        tried_ptr: (6, B * N, 16) keys.
        count_ptr: (6, B * N, C, 16) counts of each chunk.
        rows: S.
        width: K.
        pairs: B * N.
        SETS: N.
        LEVEL: Number of the launch.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        BLOCK_CHUNKS: Power of two, at least C.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    _, score = load_chunk(s_ptr, pair, chunk, rows, CHUNK)
    order = tl.arange(0, TRIED)
    if LEVEL == 0:
        lo, hi, lo_count, hi_count, k, keys = first_keys(
            moment_ptr, k_ptr, pair, pairs, width, SETS, CHUNKS, BLOCK_CHUNKS
        )  # fmt: skip
    else:
        lo, hi, lo_count, hi_count, k = last_bounds(
            state_ptr, tried_ptr, count_ptr, pair, pairs, LEVEL - 1, CHUNKS, BLOCK_CHUNKS
        )  # fmt: skip
        lo_score, hi_score = score_of(lo), score_of(hi)
        keys = between(lo_score + (hi_score - lo_score) * ((order + 1) / 17.0), lo, hi, middle_of(lo, hi))
    if chunk == 0:
        state = state_ptr + (LEVEL * pairs + pair) * 5
        tl.store(state, lo)
        tl.store(state + 1, hi)
        tl.store(state + 2, lo_count)
        tl.store(state + 3, hi_count)
        tl.store(state + 4, k)
        tl.store(tried_ptr + (LEVEL * pairs + pair) * TRIED + order, keys)
    counts = tl.sum((score[:, None] >= score_of(keys)[None, :]).to(tl.int32), 0)
    tl.store(count_ptr + ((LEVEL * pairs + pair) * CHUNKS + chunk) * TRIED + order, counts)


@triton.jit
def tally_kernel(s_ptr, state_ptr, tried_ptr, count_ptr, tally_ptr, rows, pairs, LEVEL: tl.constexpr,
                 CHUNK: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr,
                 OVERLAP: tl.constexpr):  # fmt: skip
    """Let the bounds meet, then count the scores of each chunk above and at the threshold; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        state_ptr: (6, B * N, 5) bounds, counts at both and rows wanted.
        tried_ptr: (6, B * N, 16) keys.
        count_ptr: (6, B * N, C, 16) counts of each chunk.
        tally_ptr: (B * N, C, 4) result: scores above, at the threshold, and the two bounds.
        rows: S.
        pairs: B * N.
        LEVEL: Number of the launch that counted last.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        BLOCK_CHUNKS: Power of two, at least C.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    _, score = load_chunk(s_ptr, pair, chunk, rows, CHUNK)
    lo, hi, lo_count, hi_count, k = last_bounds(
        state_ptr, tried_ptr, count_ptr, pair, pairs, LEVEL, CHUNKS, BLOCK_CHUNKS
    )  # fmt: skip
    slow = k < 0
    while (k > 0) & (lo_count != k) & (lo + 1 < hi):
        first, second = next_guesses(lo, hi, lo_count, hi_count, k, slow)
        first_count, second_count = k * 0, k * 0
        least, greatest = hi, lo
        for other in range(CHUNKS):
            _, score_in = load_chunk(s_ptr, pair, other, rows, CHUNK)
            key = ordered_key(score_in)
            inside = (key >= lo) & (key < hi)
            first_count += tl.sum((key >= first).to(tl.int32), 0)
            second_count += tl.sum((key >= second).to(tl.int32), 0)
            least = tl.minimum(least, tl.min(tl.where(inside, key, hi), 0))
            greatest = tl.maximum(greatest, tl.max(tl.where(inside, key, lo), 0))
        field = lo_count - hi_count
        # Bounds close in on the keys that are really there: equal scores end the search at once.
        lo = tl.where(second_count >= k, second, tl.where(first_count >= k, first, least))
        hi = tl.where(first_count < k, first, tl.where(second_count < k, second, greatest + 1))
        lo_count = tl.where(second_count >= k, second_count, tl.where(first_count >= k, first_count, lo_count))
        hi_count = tl.where(first_count < k, first_count, tl.where(second_count < k, second_count, hi_count))
        slow = (lo_count - hi_count) * 4 > field
    above = score >= score_of(hi)
    tie = (score >= score_of(lo)) & (score > float("-inf")) & (above == 0)
    tally = tally_ptr + (pair * CHUNKS + chunk) * 4
    tl.store(tally, tl.sum(above.to(tl.int32), 0))
    tl.store(tally + 1, tl.sum(tie.to(tl.int32), 0))
    tl.store(tally + 2, lo)
    tl.store(tally + 3, hi)


@triton.jit
def write_kernel(s_ptr, state_ptr, tally_ptr, index_ptr, count_ptr, rows, width, pairs, CHUNK: tl.constexpr,
                 CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, BLOCK_TAIL: tl.constexpr,
                 OVERLAP: tl.constexpr):  # fmt: skip
    """Write the chosen rows of each chunk, and its part of the unused tail; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        state_ptr: (6, B * N, 5) of which the last is the rows wanted.
        tally_ptr: (B * N, C, 4) scores above, at the threshold, and the two bounds.
        index_ptr: (B, N, K) int32 result.
        count_ptr: (B, N) int32 result.
        rows: S.
        width: K.
        pairs: B * N.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        BLOCK_CHUNKS: Power of two, at least C.
        BLOCK_TAIL: Power of two, at least K / C.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    other = tl.arange(0, BLOCK_CHUNKS)
    tally = tally_ptr + (pair * CHUNKS + other) * 4
    above_C = tl.load(tally, mask=other < CHUNKS, other=0)
    tie_C = tl.load(tally + 1, mask=other < CHUNKS, other=0)
    own = tally_ptr + (pair * CHUNKS + chunk) * 4
    lo_score, hi_score = score_of(tl.load(own + 2)), score_of(tl.load(own + 3))
    k = tl.load(state_ptr + pair * 5 + 4)
    room = k - tl.sum(above_C, 0)
    first_above = tl.sum(tl.where(other < chunk, above_C, 0), 0)
    first_tie = tl.sum(tl.where(other < chunk, tie_C, 0), 0)
    row, score = load_chunk(s_ptr, pair, chunk, rows, CHUNK)
    above = score >= hi_score
    tie = (score >= lo_score) & (score > float("-inf")) & (above == 0)
    # Both counts share one prefix sum: 16 bits each.
    packed = above.to(tl.int32) + (tie.to(tl.int32) << 16)
    before = tl.cumsum(packed, 0) - packed
    ties_before = first_tie + (before >> 16)
    place = first_above + (before & 0xFFFF) + tl.minimum(ties_before, room)
    out = index_ptr + pair.to(tl.int64) * width
    tl.store(out + place, row, mask=above | (tie & (ties_before < room)))
    if chunk == 0:
        tl.store(count_ptr + pair, k)
    slot = chunk * BLOCK_TAIL + tl.arange(0, BLOCK_TAIL)
    tl.store(out + slot, tl.full([BLOCK_TAIL], -1, tl.int32), mask=(slot >= k) & (slot < width))


def select_long(
    s_BNS: torch.Tensor, k_B: torch.Tensor, width: int, chunk_rows: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose rows from sets of any length.

    Args:
        s_BNS: (B, N, S) float32 scores, contiguous.
        k_B: (B,) int32, rows wanted of each sequence.
        width: K.
        chunk_rows: Rows of one block, a power of two below 32768; chosen from the length if zero.

    Returns:
        index_BNK and count_BN as `select_topk` does.
    """
    batch, sets, rows = s_BNS.shape
    chunk = chunk_rows or (CHUNK_ROWS if rows <= LARGE_ROWS else LARGE_CHUNK_ROWS)
    pairs, chunks = batch * sets, triton.cdiv(rows, chunk)
    whole = partial(torch.empty, dtype=torch.int32, device=s_BNS.device)
    moment = torch.empty(5, pairs, chunks, dtype=torch.float32, device=s_BNS.device)
    state, tried = whole(ROUNDS, pairs, 5), whole(ROUNDS, pairs, 16)
    count, tally = whole(ROUNDS, pairs, chunks, 16), whole(pairs, chunks, 4)
    index_BNK, count_BN = whole(batch, sets, width), whole(batch, sets)
    grid, many = (pairs, chunks), power_of_2(chunks)
    options = {"num_warps": max(4, min(16, chunk // 512)), **overlap(s_BNS.device)}
    moments_kernel[grid](s_BNS, moment, rows, pairs, chunk, chunks, **options)
    for level in range(ROUNDS):
        narrow_kernel[grid](
            s_BNS, k_B, moment, state, tried, count, rows, width, pairs, sets, level, chunk, chunks, many, **options
        )  # fmt: skip
    tally_kernel[grid](
        s_BNS, state, tried, count, tally, rows, pairs, ROUNDS - 1, chunk, chunks, many, **options
    )  # fmt: skip
    write_kernel[grid](
        s_BNS, state, tally, index_BNK, count_BN, rows, width, pairs, chunk, chunks, many,
        power_of_2(triton.cdiv(width, chunks)), **options,
    )  # fmt: skip
    return index_BNK, count_BN
