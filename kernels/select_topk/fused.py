"""Exact selection without a sort, for rows that fit into the registers of one block.

A search finds a threshold that keeps the k best scores; a prefix sum then writes their places in order. Each step
of the search counts at two guesses, a little below and a little above where the k-th score should lie: the first from
the mean and deviation of the scores, the others by interpolation. A step that does not shrink the field to a quarter is
followed by one that halves the range of keys, so that the search ends for any scores.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import interpreted
from ..overlap.fused import overlap, start_after_others
from ..tiling import SelectPlan, body_and_rest, multiprocessors, power_of_2, select_plan
from .alone.fused import search_alone
from .joint.fused import select_joint
from .places.fused import GROUP_ROWS, grouped, write_rows
from .search.fused import described, score_of

# 32768 scores are 64 registers of each of 512 threads, and a quarter more another 16.
MOST_ROWS = 40960


@triton.jit
def select_kernel(s_ptr, k_ptr, index_ptr, count_ptr, rows, width, SETS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                  BLOCK_REST: tl.constexpr, BLOCK_WIDTH: tl.constexpr, GROUPS: tl.constexpr, DIRECT: tl.constexpr,
                  THREADS: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Choose the rows of one set; the grid is (B * N,).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        index_ptr: (B, N, K) int32 result.
        count_ptr: (B, N) int32 result.
        rows: S.
        width: K.
        SETS: N.
        BLOCK_ROWS: Power of two.
        BLOCK_REST: Power of two, or 0; with BLOCK_ROWS at least S.
        BLOCK_WIDTH: Power of two, at least K.
        GROUPS: Of rows, whose places are found at once: a power of two, at least 4.
        DIRECT: As `scatter` has it.
        THREADS: As `search_alone` has it.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair = tl.program_id(0)
    row = tl.arange(0, BLOCK_ROWS)
    s_set = s_ptr + pair.to(tl.int64) * rows
    score = tl.load(s_set + row, mask=row < rows, other=float("-inf"))
    able, sums, squares, least, largest = described(score)
    rest = score
    if BLOCK_REST > 0:
        beyond = BLOCK_ROWS + tl.arange(0, BLOCK_REST)
        rest = tl.load(s_set + beyond, mask=beyond < rows, other=float("-inf"))
        more_able, more_sums, more_squares, more_least, more_largest = described(rest)
        able, sums, squares = able + more_able, sums + more_sums, squares + more_squares
        least, largest = tl.minimum(least, more_least), tl.maximum(largest, more_largest)
    k = tl.maximum(tl.minimum(tl.minimum(tl.load(k_ptr + pair // SETS), able), width), 0)
    lo, hi, lo_count, hi_count = search_alone(
        score, rest, k, able, sums, squares, least, largest, BLOCK_REST > 0, THREADS
    )
    lo_score, hi_score = score_of(lo), score_of(hi)
    room = k - hi_count
    out = index_ptr + pair.to(tl.int64) * width
    place, first_tie = able * 0, able * 0
    # The scores are read again, from the L2 cache and in parts: places of all of them would need more registers than
    # the search, and leave room for fewer blocks.
    for part in range(0, BLOCK_ROWS + BLOCK_REST, GROUPS * GROUP_ROWS):
        row_in = part + tl.arange(0, GROUPS * GROUP_ROWS)
        score_in = tl.load(s_set + row_in, mask=row_in < rows, other=float("-inf"))
        place, first_tie = write_rows(out, grouped(score_in, GROUPS), part, lo_score, hi_score, lo_count - k, room,
                                      place, first_tie, GROUPS, DIRECT)  # fmt: skip
    slot = tl.arange(0, BLOCK_WIDTH)
    tl.store(out + slot, tl.full([BLOCK_WIDTH], -1, tl.int32), mask=(slot >= k) & (slot < width))
    tl.store(count_ptr + pair, k)


def select_topk(
    s_BNS: torch.Tensor,
    k_B: torch.Tensor,
    width: int,
    plan: SelectPlan | None = None,
    into: tuple[torch.Tensor, torch.Tensor] | None = None,
    told_BNX4: torch.Tensor | None = None,
    board: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose as the eager twin does, the same rows.

    Args:
        s_BNS: (B, N, S) float32 scores.
        k_B: (B,) int32, rows wanted of each sequence.
        width: K; no more than this many rows are chosen.
        plan: How to cut the work; chosen from the shape if absent.
        into: Contiguous index_BNK and count_BN to write; new ones if absent.
        told_BNX4: What `scores_told` tells of the scores, if known; of use where several blocks hold a row.
        board: `board_words` int64 zeros, of use there, too; new ones if absent.

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
    index_BNK, count_BN = into or empty_choice(batch, sets, width, s_BNS.device)
    if rows > MOST_ROWS:
        select_joint(s_BNS, k_B, index_BNK, count_BN, told_BNX4=told_BNX4, board=board)
        return index_BNK, count_BN
    block_rows, block_rest = body_and_rest(rows)
    plan = plan or select_plan(block_rows, block_rest, batch * sets, multiprocessors(s_BNS.device))
    select_kernel[(batch * sets,)](
        s_BNS, k_B, index_BNK, count_BN, rows, width, SETS=sets, BLOCK_ROWS=block_rows,
        BLOCK_REST=block_rest, BLOCK_WIDTH=power_of_2(width), GROUPS=plan.part_rows // GROUP_ROWS.value,
        DIRECT=not interpreted(), THREADS=32 * plan.num_warps if plan.few else 0, num_warps=plan.num_warps,
        maxnreg=plan.max_registers, **overlap(s_BNS.device),
    )  # fmt: skip
    return index_BNK, count_BN


def empty_choice(batch: int, sets: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Allocate what a choice writes.

    Args:
        batch: B.
        sets: N.
        width: K.
        device: Where.

    Returns:
        index_BNK and count_BN, int32.
    """
    index_BNK = torch.empty(batch, sets, width, dtype=torch.int32, device=device)
    return index_BNK, torch.empty(batch, sets, dtype=torch.int32, device=device)
