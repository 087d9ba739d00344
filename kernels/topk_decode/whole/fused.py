"""Scores, choice and attention in one launch: no set waits for the slowest of all between its stages.

Scores and attention wait for memory, a choice waits for its own arithmetic. As launches of their own they take turns,
and memory idles while all sets are chosen from. Here a block does all three for its set, and while one set is chosen
from, others are still scored, or attended to already.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, R dims that rank, K width.
"""

import torch
import triton
import triton.language as tl

from ...dense_decode.fused import LOG2_E, check_contiguous_rows, store_share
from ...gather_decode.fused import attend_rows
from ...interpreter import interpreted, storage_dtype, upcasts
from ...lowrank_score.fused import score_rows
from ...op import Reduce
from ...overlap.fused import overlap, start_after_others
from ...select_topk.chosen.fused import choose, held_scores, write_end
from ...select_topk.fused import empty_choice
from ...select_topk.sample.fused import sample_of
from ...tiling import MOST_SAMPLE, power_of_2
from ..cut import WholePlan


@triton.jit
def whole_kernel(rank_q_ptr, rank_k_ptr, lo_ptr, hi_ptr, wanted_ptr, q_ptr, k_ptr, v_ptr, s_ptr, index_ptr, count_ptr,
                 out_ptr, scale_log2, rows, width, rank_q_batch, rank_q_head, rank_k_batch, rank_k_head, rank_k_row,
                 k_batch, k_head, k_row, v_batch, v_head, v_row,
                 KV_HEADS: tl.constexpr, GROUP: tl.constexpr, RANK_DIM: tl.constexpr, DIM: tl.constexpr,
                 REDUCE: tl.constexpr, BLOCK_ROWS: tl.constexpr, SAMPLE: tl.constexpr, ALIGNED: tl.constexpr,
                 DIRECT: tl.constexpr, THREADS: tl.constexpr, SCORE_ROWS: tl.constexpr, SCORE_STAGES: tl.constexpr,
                 ATTEND_ROWS: tl.constexpr, ATTEND_STAGES: tl.constexpr, BLOCK_RANK: tl.constexpr,
                 BLOCK_SHORT: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
                 BLOCK_WIDTH: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Score, choose from and attend to one set; the grid is (B * G,).

    Args:
        rank_q_ptr: Queries that rank.
        rank_k_ptr: Keys that rank.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last.
        wanted_ptr: (B,) rows wanted.
        q_ptr: (B, H, D) queries, contiguous.
        k_ptr: Keys.
        v_ptr: Values.
        s_ptr: (B, G, S) float32, contiguous: scores on their way from the threads that have them to those that choose.
        index_ptr: (B, G, K) int32 result.
        count_ptr: (B, G) int32 result.
        out_ptr: (B * H, D) result.
        scale_log2: Factor of the scores, times log2(e).
        rows: S.
        width: K.
        rank_q_batch: Stride.
        rank_q_head: Stride.
        rank_k_batch: Stride.
        rank_k_head: Stride.
        rank_k_row: Stride.
        k_batch: Stride.
        k_head: Stride.
        k_row: Stride.
        v_batch: Stride.
        v_head: Stride.
        v_row: Stride.
        KV_HEADS: G.
        GROUP: J.
        RANK_DIM: R.
        DIM: D.
        REDUCE: "max" or "sum".
        BLOCK_ROWS: Power of two, at least S; less than 65536.
        SAMPLE: Scores that the first guesses are made from.
        ALIGNED: As `held_scores` has it.
        DIRECT: As `scatter` has it.
        THREADS: Of the block.
        SCORE_ROWS: Rows of a tile.
        SCORE_STAGES: Of its loop.
        ATTEND_ROWS: Rows of a tile.
        ATTEND_STAGES: Of its loop.
        BLOCK_RANK: Power of two, at least 16 and R.
        BLOCK_SHORT: Power of two, at least 8 and J.
        BLOCK_GROUP: Power of two, at least 16 and J.
        BLOCK_DIM: Power of two, at least D.
        BLOCK_WIDTH: Power of two, at least K.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair = tl.program_id(0)
    batch, head = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    lo, hi = tl.load(lo_ptr + batch), tl.load(hi_ptr + batch)
    # From a row on that is aligned.
    start = tl.multiple_of(lo // 16 * 16, 16)
    pitch = rows // 4 * 4 if ALIGNED else rows
    s_set = s_ptr + pair.to(tl.int64) * pitch
    short, column, in_tile = tl.arange(0, BLOCK_SHORT), tl.arange(0, BLOCK_RANK), tl.arange(0, SCORE_ROWS)
    # Columns beyond the group repeat its heads, which no maximum notices.
    at_head, in_rank = short % GROUP if REDUCE == "max" else short, column < RANK_DIM
    q_columns = rank_q_ptr + batch * rank_q_batch + (head * GROUP + at_head)[None, :] * rank_q_head + column[:, None]
    rank_q = tl.load(q_columns, mask=(at_head < GROUP)[None, :] & in_rank[:, None], other=0.0)
    k_tile = rank_k_ptr + batch * rank_k_batch + head * rank_k_head + start.to(tl.int64) * rank_k_row
    k_tile += in_tile[:, None] * rank_k_row + column[None, :]
    if UPCAST:
        rank_q = rank_q.to(tl.float32)
    score_rows(rank_q, k_tile, s_set, start, hi, rows, rank_k_row, GROUP, RANK_DIM, REDUCE, SCORE_ROWS, BLOCK_SHORT,
               BLOCK_RANK, SCORE_STAGES, False, UPCAST)  # fmt: skip
    # Scores that other threads have stored are read from here on.
    tl.debug_barrier()
    sample = sample_of(s_set + start, hi - start, SAMPLE)
    row = start + tl.arange(0, BLOCK_ROWS)
    # Four at a time, which a mask by `hi` would not allow.
    score = held_scores(s_set + start, 0, rows - start, BLOCK_ROWS, ALIGNED)
    score = tl.where((row >= lo) & (row < hi), score, float("-inf"))
    index_set = index_ptr + pair.to(tl.int64) * width
    wanted = tl.minimum(tl.load(wanted_ptr + batch), width)
    k = choose(score, score, sample, s_set, index_set, wanted, start, lo, hi, BLOCK_ROWS, 0, DIRECT, THREADS, False,
               False)  # fmt: skip
    write_end(index_set, count_ptr + pair, k, width, BLOCK_WIDTH)
    # Rows that other threads have stored are read from here on.
    tl.debug_barrier()
    member, column = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM)
    in_dim = (column < DIM)[None, :]
    q_place = q_ptr + (pair * GROUP + member)[:, None] * DIM + column[None, :]
    q = tl.load(q_place, mask=(member < GROUP)[:, None] & in_dim, other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    k_set = k_ptr + batch * k_batch + head * k_head + column[None, :]
    v_set = v_ptr + batch * v_batch + head * v_head + column[None, :]
    top, total, acc = attend_rows(q, k_set, v_set, index_set, 0, k, k_row, v_row, scale_log2, DIM, ATTEND_ROWS,
                                  BLOCK_GROUP, BLOCK_DIM, ATTEND_STAGES, UPCAST)  # fmt: skip
    store_share(out_ptr, out_ptr, top, total, acc, pair * GROUP, 0, 1, GROUP, DIM, BLOCK_GROUP, BLOCK_DIM)


def whole_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    rank_q_BHR: torch.Tensor,
    rank_k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    reduce: Reduce,
    wanted_B: torch.Tensor,
    width: int,
    scale: float,
    plan: WholePlan,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score, choose and attend in one launch; all but the last argument are those of `topk_decode`.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        rank_q_BHR: (B, H, R) queries that rank.
        rank_k_BGSR: (B, G, S, R) keys that rank.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last.
        reduce: "max" or "sum".
        wanted_B: (B,) int32, rows wanted.
        width: K.
        scale: Factor of the scores of the attention.
        plan: How the work is cut.

    Returns:
        (B, H, D) attention, index_BNK and count_BN.

    Raises:
        ValueError: If `width` is not positive, or rows are not contiguous.
    """
    if width < 1:
        raise ValueError(f"expected a positive width, got {width}")
    check_contiguous_rows(rank_q_BHR, rank_k_BGSR, k_BGSD, v_BGSD)
    (batch, groups, rows, dims), (heads, head_dim) = rank_k_BGSR.shape, q_BHD.shape[1:]
    q_BHD, group, device = q_BHD.contiguous(), heads // groups, q_BHD.device
    index_BNK, count_BN = empty_choice(batch, groups, width, device)
    s_BNS = torch.empty(batch, groups, rows, dtype=torch.float32, device=device)
    out_BHD = torch.empty_like(q_BHD, dtype=storage_dtype(q_BHD.dtype))
    whole_kernel[(batch * groups,)](
        rank_q_BHR, rank_k_BGSR, lo_B, hi_B, wanted_B, q_BHD, k_BGSD, v_BGSD, s_BNS, index_BNK, count_BN, out_BHD,
        scale * LOG2_E, rows, width, *rank_q_BHR.stride()[:2], *rank_k_BGSR.stride()[:3],
        *k_BGSD.stride()[:3], *v_BGSD.stride()[:3],
        KV_HEADS=groups, GROUP=group, RANK_DIM=dims, DIM=head_dim, REDUCE=reduce, BLOCK_ROWS=plan.block_rows,
        SAMPLE=MOST_SAMPLE, ALIGNED=rows % 4 == 0, DIRECT=not interpreted(), THREADS=32 * plan.num_warps,
        SCORE_ROWS=plan.score_rows, SCORE_STAGES=plan.score_stages, ATTEND_ROWS=plan.attend_rows,
        ATTEND_STAGES=plan.attend_stages, BLOCK_RANK=max(16, power_of_2(dims)), BLOCK_SHORT=max(8, power_of_2(group)),
        BLOCK_GROUP=max(16, power_of_2(group)), BLOCK_DIM=power_of_2(head_dim), BLOCK_WIDTH=power_of_2(width),
        UPCAST=upcasts(q_BHD.dtype), num_warps=plan.num_warps, maxnreg=plan.max_registers, **overlap(device),
    )  # fmt: skip
    return out_BHD.to(q_BHD.dtype), index_BNK, count_BN
