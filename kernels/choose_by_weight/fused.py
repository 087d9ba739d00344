"""The choice by summed weights in one launch where one block can hold a set, and there are sets enough for the GPU.

A block reads the scores of a set's heads, one head after the other, and sums their weights in registers, where the
choice of `select_topk` wants them: ranks are neither written nor read. Elsewhere many blocks rank the rows, and
`select_topk` chooses.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, X parts of a sum, K width.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..interpreter import interpreted
from ..overlap.fused import overlap, start_after_others
from ..select_topk.chosen.fused import choose, write_end
from ..select_topk.fused import LEAST_ROWS, MAX_REGISTERS, MOST_ROWS, by_one_block, empty_choice, select_topk
from ..tiling import body_and_rest, multiprocessors, power_of_2, select_plan
from .by_rows.fused import rank_rows
from .held.fused import forced, joined_parts, sampled, summed_weights

# Of a thread, at most, where a block has an SM to itself.
ALL_REGISTERS = 255
SM_REGISTERS = 2**16


class WeightPlan(NamedTuple):
    """How a choice by one block for each set is cut.

    Attributes:
        body_rows: Rows that are ranked first, a power of two, at least four for each thread.
        rest_rows: Those behind them, the same, or 0.
        num_warps: Warps of a block.
        registers: The most of a thread.
    """

    body_rows: int
    rest_rows: int
    num_warps: int
    registers: int = MAX_REGISTERS


@triton.jit
def choose_by_weight_kernel(score_ptr, part_ptr, lo_ptr, hi_ptr, local_ptr, k_ptr, rank_ptr, index_ptr, count_ptr,
                            lse_ptr, rows, width, SETS: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
                            BLOCK_ROWS: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_GROUP: tl.constexpr,
                            BLOCK_SPLITS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, ALIGNED: tl.constexpr,
                            DIRECT: tl.constexpr, THREADS: tl.constexpr,
                            OVERLAP: tl.constexpr):  # fmt: skip
    """Rank the rows of one set and choose; the grid is (B * G,).

    Args:
        score_ptr: (B, H, S) float32 scores, contiguous.
        part_ptr: (B * H, X, 2) float32: largest score, sum of exp(score - it).
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        local_ptr: (B,) how many of the last visible rows are forced.
        k_ptr: (B,) rows wanted.
        rank_ptr: (B, G, S) float32, for ranks of which some are equal at the border of what is chosen.
        index_ptr: (B, G, K) int32 result.
        count_ptr: (B, G) int32 result.
        lse_ptr: (B, H) float32 result: log of the sum of exp(score).
        rows: S.
        width: K.
        SETS: G.
        GROUP: J.
        SPLITS: X.
        BLOCK_ROWS: Power of two, at least four for each thread.
        BLOCK_REST: The same, or 0; with BLOCK_ROWS at least S.
        BLOCK_GROUP: Power of two, at least J.
        BLOCK_SPLITS: Power of two, at least X.
        BLOCK_WIDTH: Power of two, at least K.
        ALIGNED: As `held_scores` has it.
        DIRECT: As `scatter` has it.
        THREADS: Of the block.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    # the sets that were scored last are still near
    pair = tl.num_programs(0) - 1 - tl.program_id(0)
    batch = pair // SETS
    pitch = rows // 4 * 4 if ALIGNED else rows
    lo, hi, local = tl.load(lo_ptr + batch), tl.load(hi_ptr + batch), tl.load(local_ptr + batch)
    wanted = tl.minimum(tl.load(k_ptr + batch), width)
    base, total, lse = joined_parts(part_ptr, pair * GROUP, GROUP, SPLITS, BLOCK_GROUP, BLOCK_SPLITS)
    member = tl.arange(0, BLOCK_GROUP)
    tl.store(lse_ptr + pair * GROUP + member, lse, mask=member < GROUP)
    s_set, share = score_ptr + (pair * GROUP).to(tl.int64) * pitch, 1.0 / total
    rank = summed_weights(s_set, base, share, 0, rows, pitch, BLOCK_ROWS, GROUP, BLOCK_GROUP, ALIGNED)
    rank = forced(rank, 0, lo, hi, local, rows, BLOCK_ROWS)
    chunks = tl.cdiv(rows, 4 * THREADS)
    sample, rest = sampled(rank, 0, chunks, THREADS), rank
    if BLOCK_REST:
        rest = summed_weights(s_set, base, share, BLOCK_ROWS, rows, pitch, BLOCK_REST, GROUP, BLOCK_GROUP, ALIGNED)
        rest = forced(rest, BLOCK_ROWS, lo, hi, local, rows, BLOCK_REST)
        sample = tl.maximum(sample, sampled(rest, BLOCK_ROWS // (4 * THREADS), chunks, THREADS))
    out = index_ptr + pair.to(tl.int64) * width
    rank_set = rank_ptr + pair.to(tl.int64) * pitch
    k = choose(rank, rest, sample, rank_set, out, wanted, 0, 0, rows, BLOCK_ROWS, BLOCK_REST, DIRECT, THREADS, True,
               True)  # fmt: skip
    write_end(out, count_ptr + pair, k, width, BLOCK_WIDTH)


def weight_plan(sets: int, rows: int, multiprocessor_count: int) -> WeightPlan:
    """Cut the choice by one block for each set.

    Args:
        sets: Of all texts.
        rows: S.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The plan.
    """
    body_rows, rest_rows = body_and_rest(max(LEAST_ROWS, rows))
    num_warps = select_plan(body_rows).num_warps
    rest_rows = max(rest_rows, 128 * num_warps) if rest_rows else 0
    alone = min(ALL_REGISTERS, SM_REGISTERS // (32 * num_warps))
    return WeightPlan(body_rows, rest_rows, num_warps, alone if sets <= multiprocessor_count else MAX_REGISTERS)


def at_once(sets: int, rows: int, group: int, multiprocessor_count: int) -> bool:
    """Tell whether one block for each set ranks and chooses.

    Args:
        sets: Of all texts.
        rows: S.
        group: J.
        multiprocessor_count: SMs of the GPU.

    Returns:
        Whether a block can hold a set, and few SMs are left without one.
    """
    # beside the sums, of several heads, stand the scores of one
    most_rows = MOST_ROWS if group == 1 else MOST_ROWS // 2
    return rows <= most_rows and 4 * sets >= 3 * multiprocessor_count


def choose_by_weight(
    score_BHS: torch.Tensor,
    part_BHX2: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    local_B: torch.Tensor,
    k_B: torch.Tensor,
    groups: int,
    width: int,
    plan: WeightPlan | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose as the eager twin does, in one read of the scores where one block can hold a set.

    Args:
        score_BHS: (B, H, S) float32 scores, -inf for rows that are not visible.
        part_BHX2: (B, H, X, 2) float32, the largest score of each part of the rows, and the sum of exp(score - it).
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        local_B: (B,) int32, so many of the last visible rows come first.
        k_B: (B,) int32, rows wanted of each sequence.
        groups: G.
        width: K; no more than this many rows are chosen.
        plan: How one block for each set cuts its work; whether there is one is chosen from the shape if absent.

    Returns:
        index_BGK, count_BG and lse_BH as the eager twin.

    Raises:
        ValueError: If `width` is not positive or the scores are not float32.
    """
    if width < 1 or score_BHS.dtype != torch.float32:
        raise ValueError(f"expected a positive width and float32 scores, got {width} and {score_BHS.dtype}")
    score_BHS, part_BHX2 = score_BHS.contiguous(), part_BHX2.contiguous()
    batch, heads, rows = score_BHS.shape
    rank_BGS, lse_BH = score_BHS.new_empty(batch, groups, rows), score_BHS.new_empty(batch, heads)
    spans = lo_B, hi_B, local_B
    count_sm = multiprocessors(score_BHS.device)
    if plan is None and not at_once(batch * groups, rows, heads // groups, count_sm):
        rank_rows(score_BHS, part_BHX2, spans, rank_BGS, lse_BH)
        return *_of_ranks(rank_BGS, k_B, width), lse_BH
    plan = plan or weight_plan(batch * groups, rows, count_sm)
    chosen = empty_choice(batch, groups, width, score_BHS.device)
    _at_once(score_BHS, part_BHX2, (*spans, k_B), rank_BGS, (*chosen, lse_BH), plan)
    return *chosen, lse_BH


def _of_ranks(rank_BGS: torch.Tensor, k_B: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch, groups, rows = rank_BGS.shape
    if rows > MOST_ROWS:
        return select_topk(rank_BGS, k_B, width)
    chosen = empty_choice(batch, groups, width, rank_BGS.device)
    by_one_block(rank_BGS, k_B, chosen, by_keys=True)
    return chosen


def _at_once(
    score_BHS: torch.Tensor,
    part_BHX2: torch.Tensor,
    asked: tuple[torch.Tensor, ...],
    rank_BGS: torch.Tensor,
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    plan: WeightPlan,
) -> None:
    """Rank and choose: what is asked are lo_B, hi_B, local_B and k_B, what is found index_BGK, count_BG and lse_BH."""
    (batch, groups, rows), group = rank_BGS.shape, score_BHS.shape[1] // rank_BGS.shape[1]
    splits, width = part_BHX2.shape[2], found[0].shape[2]
    choose_by_weight_kernel[(batch * groups,)](
        score_BHS, part_BHX2, *asked, rank_BGS, *found, rows, width, SETS=groups, GROUP=group, SPLITS=splits,
        BLOCK_ROWS=plan.body_rows, BLOCK_REST=plan.rest_rows, BLOCK_GROUP=power_of_2(group),
        BLOCK_SPLITS=power_of_2(splits), BLOCK_WIDTH=power_of_2(width), ALIGNED=rows % 4 == 0,
        DIRECT=not interpreted(), THREADS=32 * plan.num_warps, num_warps=plan.num_warps, maxnreg=plan.registers,
        **overlap(score_BHS.device),
    )  # fmt: skip
