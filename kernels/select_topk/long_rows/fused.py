"""Exact selection from rows too long for one block: a radix search over four digits of the keys.

Several blocks share a row. Each launch counts one digit, after resolving the digit before it, so that nothing
waits inside a kernel and nothing returns to the host: four counts, one tally of each block's rows, one writing.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result, C blocks (chunks) of a row.
"""

from functools import partial

import torch
import triton
import triton.language as tl

from ...overlap.fused import overlap, start_after_others
from ...tiling import power_of_2
from ..search.fused import LOWEST, ordered_key

BINS = tl.constexpr(256)
LEVELS = 4
CHUNK_ROWS = 4096


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
def resolve(count_ptr, state_ptr, k_ptr, pair, pairs, width, SETS: tl.constexpr, LEVEL: tl.constexpr):
    """Find one digit of the threshold from the counts of that digit.

    Args:
        count_ptr: (4, B * N, 256) counts.
        state_ptr: (5, B * N, 2) threshold so far and how many keys are wanted among those that share it.
        k_ptr: (B,) rows wanted.
        pair: Which set.
        pairs: B * N.
        width: K.
        SETS: N.
        LEVEL: Which digit, the highest being 0.

    Returns:
        The threshold so far and how many keys are wanted among those that share it.
    """
    digit = tl.arange(0, BINS)
    count = tl.load(count_ptr + (LEVEL * pairs + pair) * BINS + digit)
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
    if LEVEL == 0:
        found = found ^ 0x80
    return threshold | (found << (24 - 8 * LEVEL)), wanted


@triton.jit
def count_kernel(s_ptr, k_ptr, count_ptr, state_ptr, rows, width, pairs, SETS: tl.constexpr, LEVEL: tl.constexpr,
                 CHUNK: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Count one digit of the keys that share the threshold so far; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        count_ptr: (4, B * N, 256) counts, zero before.
        state_ptr: (5, B * N, 2) state of each level.
        rows: S.
        width: K.
        pairs: B * N.
        SETS: N.
        LEVEL: Which digit.
        CHUNK: Rows of a chunk.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    _, key = load_keys(s_ptr, pair, chunk, rows, CHUNK)
    digit = (key >> (24 - 8 * LEVEL)) & 0xFF
    if LEVEL == 0:
        # The sign bit counts downwards in a signed integer.
        digit = digit ^ 0x80
        mask = key != LOWEST
    else:
        threshold, wanted = resolve(count_ptr, state_ptr, k_ptr, pair, pairs, width, SETS, LEVEL - 1)
        if chunk == 0:
            state = state_ptr + (LEVEL * pairs + pair) * 2
            tl.store(state, threshold)
            tl.store(state + 1, wanted)
        mask = (key != LOWEST) & ((key >> (32 - 8 * LEVEL)) == (threshold >> (32 - 8 * LEVEL)))
    count = tl.histogram(digit, BINS, mask=mask)
    place = (LEVEL * pairs + pair) * BINS + tl.arange(0, BINS)
    tl.atomic_add(count_ptr + place, count, mask=count > 0, sem="relaxed")


@triton.jit
def tally_kernel(s_ptr, k_ptr, count_ptr, state_ptr, tally_ptr, rows, width, pairs, SETS: tl.constexpr,
                 CHUNK: tl.constexpr, CHUNKS: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Count the keys of each chunk above and at the threshold; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        count_ptr: (4, B * N, 256) counts.
        state_ptr: (5, B * N, 2) state of each level.
        tally_ptr: (B * N, 2, C) result: rows above, rows at the threshold.
        rows: S.
        width: K.
        pairs: B * N.
        SETS: N.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    threshold, wanted = resolve(count_ptr, state_ptr, k_ptr, pair, pairs, width, SETS, 3)
    if chunk == 0:
        state = state_ptr + (4 * pairs + pair) * 2
        tl.store(state, threshold)
        tl.store(state + 1, wanted)
    _, key = load_keys(s_ptr, pair, chunk, rows, CHUNK)
    tally = tally_ptr + pair * 2 * CHUNKS + chunk
    tl.store(tally, tl.sum((key > threshold).to(tl.int32), 0))
    tl.store(tally + CHUNKS, tl.sum(((key == threshold) & (key != LOWEST)).to(tl.int32), 0))


@triton.jit
def write_kernel(s_ptr, state_ptr, tally_ptr, index_ptr, count_ptr, rows, width, pairs, CHUNK: tl.constexpr,
                 CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, BLOCK_TAIL: tl.constexpr,
                 OVERLAP: tl.constexpr):  # fmt: skip
    """Write the chosen rows of each chunk, and its part of the unused tail; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        state_ptr: (5, B * N, 2) state of each level.
        tally_ptr: (B * N, 2, C) rows above and at the threshold.
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
    state = state_ptr + (4 * pairs + pair) * 2
    threshold, room = tl.load(state), tl.load(state + 1)
    other = tl.arange(0, BLOCK_CHUNKS)
    tally = tally_ptr + pair * 2 * CHUNKS + other
    above_C = tl.load(tally, mask=other < CHUNKS, other=0)
    tie_C = tl.load(tally + CHUNKS, mask=other < CHUNKS, other=0)
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
    s_BNS: torch.Tensor, k_B: torch.Tensor, width: int, chunk_rows: int = CHUNK_ROWS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose rows from sets of any length.

    Args:
        s_BNS: (B, N, S) float32 scores, contiguous.
        k_B: (B,) int32, rows wanted of each sequence.
        width: K.
        chunk_rows: Rows of one block, a power of two below 32768.

    Returns:
        index_BNK and count_BN as `select_topk` does.
    """
    batch, sets, rows = s_BNS.shape
    pairs, chunks = batch * sets, triton.cdiv(rows, chunk_rows)
    whole = partial(torch.empty, dtype=torch.int32, device=s_BNS.device)
    count = torch.zeros(LEVELS, pairs, 256, dtype=torch.int32, device=s_BNS.device)
    state, tally = whole(LEVELS + 1, pairs, 2), whole(pairs, 2, chunks)
    index_BNK, count_BN = whole(batch, sets, width), whole(batch, sets)
    grid, options = (pairs, chunks), {"num_warps": 8, **overlap(s_BNS.device)}
    for level in range(LEVELS):
        count_kernel[grid](s_BNS, k_B, count, state, rows, width, pairs, sets, level, chunk_rows, **options)
    tally_kernel[grid](s_BNS, k_B, count, state, tally, rows, width, pairs, sets, chunk_rows, chunks, **options)
    write_kernel[grid](
        s_BNS, state, tally, index_BNK, count_BN, rows, width, pairs, chunk_rows, chunks,
        power_of_2(chunks), power_of_2(triton.cdiv(width, chunks)), **options,
    )  # fmt: skip
    return index_BNK, count_BN
