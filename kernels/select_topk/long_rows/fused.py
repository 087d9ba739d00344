"""Exact selection from rows too long for one block: a radix search over four digits of the keys.

Several blocks share a row. Each launch counts one digit, after resolving the digit before it, so that nothing
waits inside a kernel and nothing returns to the host: four counts, then one writing. Each block keeps its own counts:
nothing must be zeroed first, and from them it knows how many rows the blocks before it write.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result, C blocks (chunks) of a row.
"""

from functools import partial

import torch
import triton
import triton.language as tl

from ...overlap import overlap, start_after_others
from ...tiling import power_of_2

LOWEST = tl.constexpr(-(2**31))
BINS = tl.constexpr(256)
LEVELS = 4
# Every block reads the counts of all blocks of its row: longer rows take larger chunks.
CHUNK_ROWS, LARGE_CHUNK_ROWS = 8192, 16384
LARGE_ROWS = 2**18


@triton.jit
def ordered_key(score):
    """Map float32 to int32 of the same order; what can never be chosen becomes the lowest integer.

    Args:
        score: Any float32.

    Returns:
        The keys.
    """
    bits = score.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    # The two zeros are equal scores, so they must be equal keys.
    key = tl.where(score == 0.0, 0, key)
    return tl.where(score > float("-inf"), key, LOWEST)


@triton.jit
def load_keys(s_ptr, pair, chunk, rows, CHUNK: tl.constexpr):
    """Load the keys of one chunk; beyond the end of the row they can never be chosen.

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        pair: Which set.
        chunk: Which chunk.
        rows: S.
        CHUNK: Rows of a chunk.

    Returns:
        The row numbers and the keys.
    """
    row = chunk * CHUNK + tl.arange(0, CHUNK)
    return row, ordered_key(tl.load(s_ptr + pair.to(tl.int64) * rows + row, mask=row < rows, other=float("-inf")))


@triton.jit
def load_counts(count_ptr, pair, pairs, LEVEL: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr):
    """Load the counts of one digit.

    Args:
        count_ptr: (4, B * N, C, 256) counts.
        pair: Which set.
        pairs: B * N.
        LEVEL: Which digit, the highest being 0.
        CHUNKS: C.
        BLOCK_CHUNKS: Power of two, at least C.

    Returns:
        (BLOCK_CHUNKS, 256) counts.
    """
    chunk = tl.arange(0, BLOCK_CHUNKS)[:, None]
    place = ((LEVEL * pairs + pair) * CHUNKS + chunk) * BINS + tl.arange(0, BINS)[None, :]
    return tl.load(count_ptr + place, mask=chunk < CHUNKS, other=0)


@triton.jit
def resolve(count, state_ptr, k_ptr, pair, pairs, width, SETS: tl.constexpr, LEVEL: tl.constexpr):
    """Find one digit of the threshold from the counts of that digit.

    Args:
        count: (256,) counts of the whole row.
        state_ptr: (4, B * N, 2) threshold so far and how many keys are wanted among those that share it.
        k_ptr: (B,) rows wanted.
        pair: Which set.
        pairs: B * N.
        width: K.
        SETS: N.
        LEVEL: Which digit, the highest being 0.

    Returns:
        The digit, the threshold so far, and how many keys are wanted among those that share it.
    """
    digit = tl.arange(0, BINS)
    total = tl.sum(count, 0)
    if LEVEL == 0:
        threshold = total * 0
        wanted = tl.maximum(tl.minimum(tl.minimum(tl.load(k_ptr + pair // SETS), total), width), 0)
    else:
        state = state_ptr + (LEVEL * pairs + pair) * 2
        threshold, wanted = tl.load(state), tl.load(state + 1)
    at_or_above = total - tl.cumsum(count, 0) + count
    found = tl.maximum(tl.sum((at_or_above >= wanted).to(tl.int32), 0) - 1, 0)
    wanted -= tl.sum(tl.where(digit > found, count, 0), 0)
    # The sign bit counts downwards in a signed integer.
    bits = found ^ 0x80 if LEVEL == 0 else found
    return found, threshold | (bits << (24 - 8 * LEVEL)), wanted


@triton.jit
def count_kernel(s_ptr, k_ptr, count_ptr, above_ptr, state_ptr, rows, width, pairs, SETS: tl.constexpr,
                 LEVEL: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr,
                 OVERLAP: tl.constexpr):  # fmt: skip
    """Count one digit of the keys that share the threshold so far; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        count_ptr: (4, B * N, C, 256) counts.
        above_ptr: (4, B * N, C) keys of each chunk whose leading digits are above the threshold's.
        state_ptr: (4, B * N, 2) state of each level.
        rows: S.
        width: K.
        pairs: B * N.
        SETS: N.
        LEVEL: Which digit.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        BLOCK_CHUNKS: Power of two, at least C.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    digits = tl.arange(0, BINS)
    _, key = load_keys(s_ptr, pair, chunk, rows, CHUNK)
    digit = (key >> (24 - 8 * LEVEL)) & 0xFF
    above_place = above_ptr + (LEVEL * pairs + pair) * CHUNKS + chunk
    if LEVEL == 0:
        digit = digit ^ 0x80
        mask = key != LOWEST
        tl.store(above_place, 0)
    else:
        count = tl.sum(load_counts(count_ptr, pair, pairs, LEVEL - 1, CHUNKS, BLOCK_CHUNKS), 0)
        found, threshold, wanted = resolve(count, state_ptr, k_ptr, pair, pairs, width, SETS, LEVEL - 1)
        own = tl.load(count_ptr + (((LEVEL - 1) * pairs + pair) * CHUNKS + chunk) * BINS + digits)
        above = tl.load(above_place - pairs * CHUNKS) + tl.sum(tl.where(digits > found, own, 0), 0)
        tl.store(above_place, above)
        if chunk == 0:
            state = state_ptr + (LEVEL * pairs + pair) * 2
            tl.store(state, threshold)
            tl.store(state + 1, wanted)
        mask = (key != LOWEST) & ((key >> (32 - 8 * LEVEL)) == (threshold >> (32 - 8 * LEVEL)))
    place = ((LEVEL * pairs + pair) * CHUNKS + chunk) * BINS + digits
    tl.store(count_ptr + place, tl.histogram(digit, BINS, mask=mask))


@triton.jit
def write_kernel(s_ptr, k_ptr, counts_ptr, above_ptr, state_ptr, index_ptr, count_ptr, rows, width, pairs,
                 SETS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr,
                 BLOCK_TAIL: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Write the chosen rows of each chunk, and its part of the unused tail; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        counts_ptr: (4, B * N, C, 256) counts.
        above_ptr: (4, B * N, C) keys of each chunk whose three leading digits are above the threshold's.
        state_ptr: (4, B * N, 2) state of each level.
        index_ptr: (B, N, K) int32 result.
        count_ptr: (B, N) int32 result.
        rows: S.
        width: K.
        pairs: B * N.
        SETS: N.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        BLOCK_CHUNKS: Power of two, at least C.
        BLOCK_TAIL: Power of two, at least K / C.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    counts = load_counts(counts_ptr, pair, pairs, 3, CHUNKS, BLOCK_CHUNKS)
    found, threshold, room = resolve(tl.sum(counts, 0), state_ptr, k_ptr, pair, pairs, width, SETS, 3)
    digits, other = tl.arange(0, BINS)[None, :], tl.arange(0, BLOCK_CHUNKS)
    above_C = tl.load(above_ptr + (3 * pairs + pair) * CHUNKS + other, mask=other < CHUNKS, other=0)
    above_C += tl.sum(tl.where(digits > found, counts, 0), 1)
    tie_C = tl.sum(tl.where(digits == found, counts, 0), 1)
    first_above = tl.sum(tl.where(other < chunk, above_C, 0), 0)
    first_tie = tl.sum(tl.where(other < chunk, tie_C, 0), 0)
    row, key = load_keys(s_ptr, pair, chunk, rows, CHUNK)
    above = key > threshold
    tie = (key == threshold) & (key != LOWEST)
    # Both counts share one prefix sum: 16 bits each.
    packed = above.to(tl.int32) + (tie.to(tl.int32) << 16)
    before = tl.cumsum(packed, 0) - packed
    ties_before = first_tie + (before >> 16)
    chosen = above | (tie & (ties_before < room))
    place = first_above + (before & 0xFFFF) + tl.minimum(ties_before, room)
    out = index_ptr + pair.to(tl.int64) * width
    tl.store(out + place, row, mask=chosen)
    count = tl.sum(above_C, 0) + tl.minimum(tl.sum(tie_C, 0), room)
    if chunk == 0:
        tl.store(count_ptr + pair, count)
    slot = chunk * BLOCK_TAIL + tl.arange(0, BLOCK_TAIL)
    tl.store(out + slot, tl.full([BLOCK_TAIL], -1, tl.int32), mask=(slot >= count) & (slot < width))


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
    count, above, state = whole(LEVELS, pairs, chunks, 256), whole(LEVELS, pairs, chunks), whole(LEVELS, pairs, 2)
    index_BNK, count_BN = whole(batch, sets, width), whole(batch, sets)
    grid, many = (pairs, chunks), power_of_2(chunks)
    options = {"num_warps": max(4, min(16, chunk // 512)), **overlap(s_BNS.device)}
    for level in range(LEVELS):
        count_kernel[grid](
            s_BNS, k_B, count, above, state, rows, width, pairs, sets, level, chunk, chunks, many, **options
        )  # fmt: skip
    write_kernel[grid](
        s_BNS, k_B, count, above, state, index_BNK, count_BN, rows, width, pairs, sets, chunk, chunks, many,
        power_of_2(triton.cdiv(width, chunks)), **options,
    )  # fmt: skip
    return index_BNK, count_BN
