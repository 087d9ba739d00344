"""Exact selection without a sort, for rows that fit into the registers of one block.

A search finds a threshold that keeps the k best scores; a prefix sum then writes their places in order. The
search guesses by interpolation between the counts on both sides, and every third time halves the range of keys,
so that it ends for any scores.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result.
"""

import torch
import triton
import triton.language as tl

from ..tiling import power_of_2
from .long_rows.fused import LOWEST, ordered_key, select_long

HIGHEST = tl.constexpr(2**31 - 1)
# 32768 keys are 64 registers of each of 512 threads.
MOST_ROWS = 32768


@triton.jit
def score_of(key):
    """Undo `ordered_key`.

    Args:
        key: A key.

    Returns:
        Its score.
    """
    key32 = key.to(tl.int32)
    return (key32 ^ ((key32 >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def guess(lo, hi, lo_count, hi_count, k, step):
    """Guess a key strictly between lo and hi at which about k keys are left.

    Args:
        lo: Key with at least k keys at or above it.
        hi: Key with fewer than k.
        lo_count: Keys at or above lo.
        hi_count: Keys at or above hi.
        k: Keys wanted.
        step: Number of the guess.

    Returns:
        The guess, int64.
    """
    middle = (lo + hi) >> 1
    part = (lo_count - k + 0.5) / (lo_count - hi_count)
    lo_score, hi_score = score_of(lo), score_of(hi)
    between = ordered_key(lo_score + (hi_score - lo_score) * part).to(tl.int64)
    usable = (between > lo) & (between < hi) & (step % 3 != 2)
    return tl.where(usable, between, middle)


@triton.jit
def select_kernel(s_ptr, k_ptr, index_ptr, count_ptr, rows, width, SETS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                  BLOCK_PART: tl.constexpr, BLOCK_WIDTH: tl.constexpr):  # fmt: skip
    """Choose the rows of one set; the grid is (B * N,).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        index_ptr: (B, N, K) int32 result.
        count_ptr: (B, N) int32 result.
        rows: S.
        width: K.
        SETS: N.
        BLOCK_ROWS: Power of two, at least S.
        BLOCK_PART: Rows whose places are found at once: a power of two, less than 32768.
        BLOCK_WIDTH: Power of two, at least K.
    """
    pair = tl.program_id(0)
    row = tl.arange(0, BLOCK_ROWS)
    s_set = s_ptr + pair.to(tl.int64) * rows
    score = tl.load(s_set + row, mask=row < rows, other=float("-inf"))
    key = ordered_key(score)
    able = tl.sum((key != LOWEST).to(tl.int32), 0)
    k = tl.maximum(tl.minimum(tl.minimum(tl.load(k_ptr + pair // SETS), able), width), 0)
    # lo always keeps at least k keys and hi always keeps fewer.
    lo = tl.min(tl.where(key != LOWEST, key, HIGHEST), 0).to(tl.int64)
    hi = tl.max(key, 0).to(tl.int64) + 1
    lo_count = able
    hi_count = able * 0
    step = able * 0
    while (k > 0) & (lo_count != k) & (hi - lo > 1):
        middle = guess(lo, hi, lo_count, hi_count, k, step)
        count = tl.sum((key >= middle.to(tl.int32)).to(tl.int32), 0)
        enough = count >= k
        lo, lo_count = tl.where(enough, middle, lo), tl.where(enough, count, lo_count)
        hi, hi_count = tl.where(enough, hi, middle), tl.where(enough, hi_count, count)
        step += 1
    lo32, hi32 = lo.to(tl.int32), hi.to(tl.int32)
    room = k - hi_count
    out = index_ptr + pair.to(tl.int64) * width
    first_above, first_tie = able * 0, able * 0
    # The scores are read again, from the L2 cache and in parts: a prefix sum over all keys would need twice the
    # registers of the search, and leave room for half as many blocks.
    for part in range(0, BLOCK_ROWS, BLOCK_PART):
        row_in = part + tl.arange(0, BLOCK_PART)
        score_in = tl.load(s_set + row_in, mask=row_in < rows, other=float("-inf"))
        key_in = ordered_key(score_in)
        above = key_in >= hi32
        tie = (key_in >= lo32) & (key_in < hi32)
        # Both counts share one prefix sum: 16 bits each.
        packed = above.to(tl.int32) + (tie.to(tl.int32) << 16)
        before = tl.cumsum(packed, 0) - packed
        ties_before = first_tie + (before >> 16)
        place = first_above + (before & 0xFFFF) + tl.minimum(ties_before, room)
        tl.store(out + place, row_in, mask=above | (tie & (ties_before < room)))
        total = tl.sum(packed, 0)
        first_above += total & 0xFFFF
        first_tie += total >> 16
    slot = tl.arange(0, BLOCK_WIDTH)
    tl.store(out + slot, tl.full([BLOCK_WIDTH], -1, tl.int32), mask=(slot >= k) & (slot < width))
    tl.store(count_ptr + pair, k)


def select_topk(s_BNS: torch.Tensor, k_B: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose as the eager twin does, the same rows.

    Args:
        s_BNS: (B, N, S) float32 scores.
        k_B: (B,) int32, rows wanted of each sequence.
        width: K; no more than this many rows are chosen.

    Returns:
        index_BNK, (B, N, K) int32, ascending, -1 past the last chosen row;
        count_BN, (B, N) int32, min(k, K, rows that can be chosen).

    Raises:
        ValueError: If `width` is not positive or the scores are not float32.
    """
    if width < 1 or s_BNS.dtype != torch.float32:
        raise ValueError(f"expected a positive width and float32 scores, got {width} and {s_BNS.dtype}")
    s_BNS = s_BNS.contiguous()
    batch, sets, rows = s_BNS.shape
    if rows > MOST_ROWS:
        return select_long(s_BNS, k_B, width)
    index_BNK = torch.empty(batch, sets, width, dtype=torch.int32, device=s_BNS.device)
    count_BN = torch.empty(batch, sets, dtype=torch.int32, device=s_BNS.device)
    block_rows = max(16, power_of_2(rows))
    select_kernel[(batch * sets,)](
        s_BNS, k_B, index_BNK, count_BN, rows, width, SETS=sets, BLOCK_ROWS=block_rows,
        BLOCK_PART=max(16, block_rows // 4), BLOCK_WIDTH=power_of_2(width),
        num_warps=min(16, max(4, block_rows // 512)),
    )  # fmt: skip
    return index_BNK, count_BN
