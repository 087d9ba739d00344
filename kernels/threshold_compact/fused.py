"""Compaction by threshold: blocks count the rows that pass in their chunk, then each writes behind those before it.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result, C blocks (chunks) of a row.
"""

import torch
import triton
import triton.language as tl

from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2

CHUNK_ROWS = 4096


@triton.jit
def load_passing(s_ptr, threshold_ptr, pair, chunk, rows, CHUNK: tl.constexpr):
    """Find the rows of one chunk that pass.

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        threshold_ptr: (B, N) float32.
        pair: Which set.
        chunk: Which chunk.
        rows: S.
        CHUNK: Rows of a chunk.

    Returns:
        The row numbers, and whether they pass.
    """
    row = chunk * CHUNK + tl.arange(0, CHUNK)
    score = tl.load(s_ptr + pair.to(tl.int64) * rows + row, mask=row < rows, other=float("-inf"))
    return row, (score >= tl.load(threshold_ptr + pair)) & (score > float("-inf"))


@triton.jit
def tally_passing_kernel(s_ptr, threshold_ptr, tally_ptr, rows, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
                         OVERLAP: tl.constexpr):  # fmt: skip
    """Count the rows of each chunk that pass; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        threshold_ptr: (B, N) float32.
        tally_ptr: (B * N, C) result.
        rows: S.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    _, passing = load_passing(s_ptr, threshold_ptr, pair, chunk, rows, CHUNK)
    tl.store(tally_ptr + pair * CHUNKS + chunk, tl.sum(passing.to(tl.int32), 0))


@triton.jit
def write_passing_kernel(s_ptr, threshold_ptr, tally_ptr, index_ptr, count_ptr, rows, width, CHUNK: tl.constexpr,
                         CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, BLOCK_TAIL: tl.constexpr,
                         OVERLAP: tl.constexpr):  # fmt: skip
    """Write the passing rows of each chunk, and its part of the unused tail; the grid is (B * N, C).

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
        BLOCK_TAIL: Power of two, at least K / C.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    row, passing = load_passing(s_ptr, threshold_ptr, pair, chunk, rows, CHUNK)
    through = tl.cumsum(passing.to(tl.int32), 0)
    if CHUNKS == 1:
        total = tl.max(through, 0)
        first = total * 0
    else:
        other = tl.arange(0, BLOCK_CHUNKS)
        tally_C = tl.load(tally_ptr + pair * CHUNKS + other, mask=other < CHUNKS, other=0)
        total = tl.sum(tally_C, 0)
        first = tl.sum(tl.where(other < chunk, tally_C, 0), 0)
    place = first + through - 1 - tl.maximum(total - width, 0)
    count = tl.minimum(total, width)
    out = index_ptr + pair.to(tl.int64) * width
    tl.store(out + place, row, mask=passing & (place >= 0))
    if chunk == 0:
        tl.store(count_ptr + pair, count)
    slot = chunk * BLOCK_TAIL + tl.arange(0, BLOCK_TAIL)
    tl.store(out + slot, tl.full([BLOCK_TAIL], -1, tl.int32), mask=(slot >= count) & (slot < width))


def threshold_compact(
    s_BNS: torch.Tensor, threshold_BN: torch.Tensor, width: int, chunk_rows: int = CHUNK_ROWS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose as the eager twin does, the same rows.

    Args:
        s_BNS: (B, N, S) float32 scores.
        threshold_BN: (B, N) float32 thresholds; NaN chooses nothing.
        width: K; the last K rows are kept where more pass.
        chunk_rows: Rows of one block, a power of two.

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
    chunk = min(chunk_rows, max(16, power_of_2(rows)))
    pairs, chunks = batch * sets, triton.cdiv(rows, chunk)
    index_BNK = torch.empty(batch, sets, width, dtype=torch.int32, device=s_BNS.device)
    count_BN = torch.empty(batch, sets, dtype=torch.int32, device=s_BNS.device)
    tally = torch.empty(pairs, chunks, dtype=torch.int32, device=s_BNS.device)
    options = {"num_warps": max(1, min(8, chunk // 256)), **overlap(s_BNS.device)}
    if chunks > 1:
        tally_passing_kernel[(pairs, chunks)](s_BNS, threshold_BN, tally, rows, chunk, chunks, **options)
    write_passing_kernel[(pairs, chunks)](
        s_BNS, threshold_BN, tally, index_BNK, count_BN, rows, width, chunk, chunks, power_of_2(chunks),
        power_of_2(triton.cdiv(width, chunks)), **options,
    )  # fmt: skip
    return index_BNK, count_BN
