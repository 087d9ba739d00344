"""Compaction by threshold: a block counts the rows that pass, and writes each behind those before it.

Where sets are enough for all SMs, a block holds a set in registers. Of few sets, or longer rows, blocks hold a chunk
each: they count in a launch of their own, and read their scores again, from the second cache, to write.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result, C blocks (chunks) of a row.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import interpreted
from ..overlap.fused import overlap, start_after_others
from ..select_topk.chosen.fused import held_scores
from ..select_topk.places.fused import GROUP_ROWS, grouped, lanes_ahead, scatter
from ..select_topk.search.fused import BEYOND, LEAST, ordered_key, reaching
from ..tiling import multiprocessors, power_of_2

# Four groups of rows, of which one sum tells the places; rows of a chunk; rows that one block holds.
LEAST_ROWS, CHUNK_ROWS, MOST_ROWS = 4 * GROUP_ROWS.value, 4096, 32768
# Scores of a thread, and places past the last row that are filled at once.
OF_THREAD, TAIL = 32, tl.constexpr(1024)


@triton.jit
def key_of(threshold):
    """Give the key that scores must reach: of a NaN one that none does, of -inf the least of a finite score.

    Args:
        threshold: float32.

    Returns:
        The key.
    """
    return tl.where(threshold >= float("-inf"), tl.maximum(ordered_key(threshold), LEAST), BEYOND)


@triton.jit
def tally_passing_kernel(s_ptr, threshold_ptr, tally_ptr, rows, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
                         ALIGNED: tl.constexpr, DIRECT: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Count the rows of each chunk that pass; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        threshold_ptr: (B, N) float32.
        tally_ptr: (B * N, C) result.
        rows: S.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        ALIGNED: As `held_scores` has it.
        DIRECT: As `reaching` has it.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    pitch = rows // 4 * 4 if ALIGNED else rows
    score = held_scores(s_ptr + pair.to(tl.int64) * pitch, chunk * CHUNK, rows, CHUNK, ALIGNED)
    passing = reaching(score, key_of(tl.load(threshold_ptr + pair)), DIRECT)
    tl.store(tally_ptr + pair * CHUNKS + chunk, tl.sum(passing, 0))


@triton.jit
def write_passing_kernel(s_ptr, threshold_ptr, tally_ptr, index_ptr, count_ptr, rows, width, CHUNK: tl.constexpr,
                         CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, ALIGNED: tl.constexpr,
                         DIRECT: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Write the passing rows of each chunk, and its part of the places past the last; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        threshold_ptr: (B, N) float32.
        tally_ptr: (B * N, C) rows of each chunk that pass; not used if C is 1.
        index_ptr: (B, N, K) int32 result.
        count_ptr: (B, N) int32 result.
        rows: S.
        width: K.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        BLOCK_CHUNKS: Power of two, at least C.
        ALIGNED: As `held_scores` has it.
        DIRECT: As `reaching` has it.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    pitch = rows // 4 * 4 if ALIGNED else rows
    score = held_scores(s_ptr + pair.to(tl.int64) * pitch, chunk * CHUNK, rows, CHUNK, ALIGNED)
    GROUPS: tl.constexpr = CHUNK // GROUP_ROWS
    key = key_of(tl.load(threshold_ptr + pair))
    ahead, total = lanes_ahead(grouped(reaching(score, key, DIRECT), GROUPS), GROUPS)
    # Nothing is added, which the compiler does not know: it compares again instead of keeping what it found before.
    passing = grouped(reaching(score, key + (total >> 31), DIRECT), GROUPS)
    first = total * 0
    if CHUNKS > 1:
        other = tl.arange(0, BLOCK_CHUNKS)
        tally = tl.load(tally_ptr + pair * CHUNKS + other, mask=other < CHUNKS, other=0)
        total, first = tl.sum(tally, 0), tl.sum(tl.where(other < chunk, tally, 0), 0)
    place = first - tl.maximum(total - width, 0) + ahead[:, :, :, None] + tl.cumsum(passing, 3) - passing
    out, count = index_ptr + pair.to(tl.int64) * width, tl.minimum(total, width)
    row = chunk * CHUNK + grouped(tl.arange(0, GROUPS * GROUP_ROWS), GROUPS)
    scatter(out + place, row, (passing != 0) & (place >= 0), DIRECT)
    if chunk == 0:
        tl.store(count_ptr + pair, count)
    for start in range(count + chunk * TAIL, width, CHUNKS * TAIL):
        slot = start + tl.arange(0, TAIL)
        tl.store(out + slot, tl.full([TAIL], -1, tl.int32), mask=slot < width)


def threshold_compact(
    s_BNS: torch.Tensor, threshold_BN: torch.Tensor, width: int, chunk_rows: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose as the eager twin does, the same rows.

    Args:
        s_BNS: (B, N, S) float32 scores.
        threshold_BN: (B, N) float32 thresholds; NaN chooses nothing.
        width: K; the last K rows are kept where more pass.
        chunk_rows: Rows of one block, a power of two of 512 to 32768; chosen from the shape if 0.

    Returns:
        index_BNK, (B, N, K) int32, ascending, -1 past the last chosen row;
        count_BN, (B, N) int32, min(K, rows that pass).

    Raises:
        ValueError: If `width` is not positive or the scores are not float32.
    """
    if width < 1 or s_BNS.dtype != torch.float32:
        raise ValueError(f"expected a positive width and float32 scores, got {width} and {s_BNS.dtype}")
    s_BNS, threshold_BN = s_BNS.contiguous(), threshold_BN.contiguous()
    batch, sets, rows = s_BNS.shape
    pairs, count = batch * sets, multiprocessors(s_BNS.device)
    chunk = max(LEAST_ROWS, chunk_rows or chunk_of(pairs, rows, count))
    chunks = triton.cdiv(rows, chunk)
    index_BNK = torch.empty(batch, sets, width, dtype=torch.int32, device=s_BNS.device)
    count_BN = torch.empty(batch, sets, dtype=torch.int32, device=s_BNS.device)
    tally = torch.empty(pairs, chunks, dtype=torch.int32, device=s_BNS.device)
    both = {"CHUNK": chunk, "CHUNKS": chunks, "ALIGNED": rows % 4 == 0, "DIRECT": not interpreted(),
            "num_warps": max(4, chunk // (32 * OF_THREAD)), **overlap(s_BNS.device)}  # fmt: skip
    if chunks > 1:
        tally_passing_kernel[(pairs, chunks)](s_BNS, threshold_BN, tally, rows, **both)
    write_passing_kernel[(pairs, chunks)](
        s_BNS, threshold_BN, tally, index_BNK, count_BN, rows, width, BLOCK_CHUNKS=power_of_2(chunks), **both
    )
    return index_BNK, count_BN


def chunk_of(pairs: int, rows: int, multiprocessor_count: int) -> int:
    """Choose how many rows a block holds.

    Args:
        pairs: Sets of all texts.
        rows: S.
        multiprocessor_count: SMs of the GPU.

    Returns:
        All of them, to the next power of two, where that leaves few SMs idle and they fit; else a few thousand.
    """
    whole = max(LEAST_ROWS, power_of_2(rows))
    alone = whole <= MOST_ROWS and 4 * pairs >= 3 * multiprocessor_count
    return whole if alone else min(whole, CHUNK_ROWS)
