"""Attention above thresholds: keys are read once for the scores, then the values of the rows that are kept.

Three launches: scores with the softmax's maximum and sum, kept values, and the parts of all blocks together. The
thresholds are known beforehand, so nothing is searched or sorted.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, N sets, X and Y
splits of the scores and of the values.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ..interpreter import storage_dtype, upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import Plan, attention_plan, attention_rows, choose_splits, multiprocessors, power_of_2
from .eager import check_terms
from .merge.fused import theta_merge_kernel
from .values.fused import ALIGN, value_gather_kernel

LOG2_E = tl.constexpr(1.4426950408889634)
# Scores of a head that are looked at together.
LOOK = 1024


@triton.jit
def theta_score_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, s_ptr, top_ptr, total_ptr, scale, rows, k_batch, k_head, k_row,
                       KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr,
                       BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
                       UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Score one split of the visible rows of one (sequence, KV head); the grid is (B * G, X).

    Args:
        q_ptr: (B, H, D) queries, contiguous.
        k_ptr: Keys.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        s_ptr: (B, H, S) float32 scaled scores, result; others than visible rows hold anything.
        top_ptr: (B * H, X) largest score of the split.
        total_ptr: (B * H, X) sum of exp(score - top).
        scale: Factor of the scores.
        rows: S.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        SPLITS: X.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 16 and J.
        BLOCK_DIM: Power of two, at least 16 and D.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, split = tl.program_id(0), tl.program_id(1)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    lo, hi = tl.load(lo_ptr + batch), tl.load(hi_ptr + batch)
    begin = lo // ALIGN * ALIGN
    share = tl.cdiv(tl.cdiv(tl.maximum(hi - begin, 0), BLOCK_ROWS), SPLITS) * BLOCK_ROWS
    start = begin + split * share
    end = tl.minimum(start + share, hi)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    in_group, in_dim = (member < GROUP)[:, None], (column < DIM)[None, :]
    q = tl.load(q_ptr + (pair * GROUP + member)[:, None] * DIM + column[None, :], mask=in_group & in_dim, other=0.0)
    k_pair = k_ptr + batch.to(tl.int64) * k_batch + head.to(tl.int64) * k_head
    k_tile = k_pair + start.to(tl.int64) * k_row + row[:, None] * k_row + column[None, :]
    s_heads = s_ptr + (pair * GROUP + member).to(tl.int64)[:, None] * rows
    top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    if UPCAST:
        q = q.to(tl.float32)
    for tile in range(start, end, BLOCK_ROWS):
        at = tile + row
        seen = (at >= lo) & (at < end)
        k = tl.load(k_tile, mask=seen[:, None] & in_dim, other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        tl.store(s_heads + at[None, :], score, mask=in_group & (at < rows)[None, :])
        score = tl.where(seen[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        total = total * tl.exp2((top - new_top) * LOG2_E) + tl.sum(tl.exp2((score - new_top[:, None]) * LOG2_E), 1)
        top = new_top
        k_tile += BLOCK_ROWS * k_row
    place = (pair * GROUP + member) * SPLITS + split
    tl.store(top_ptr + place, top, mask=member < GROUP)
    tl.store(total_ptr + place, total, mask=member < GROUP)


def theta_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
    threshold_BN: torch.Tensor,
    placement: str,
    missing: str,
    given_BH: torch.Tensor,
    factor: float,
    sum_BGD: torch.Tensor | None,
    context_B: torch.Tensor,
    plan: Plan | None = None,
    value_plan: Plan | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend as the eager twin does; keys are read once, values where a head keeps the row.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        v_BGSD: (B, G, S, D) values; any strides, the last dim contiguous.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        scale: Factor of the scores.
        threshold_BN: (B, N) float32, N = H or G.
        placement: "pre" or "post".
        missing: "none", "exact", "threshold" or "given".
        given_BH: (B, H) float32.
        factor: Of what is missing.
        sum_BGD: (B, G, D) float32, or None.
        context_B: (B,) integers.
        plan: How to cut the scores; chosen from the shape if absent.
        value_plan: How to cut the values; chosen from the shape if absent.

    Returns:
        out_BHD, lack_BH and count_BG as the eager twin.

    Raises:
        ValueError: If placement or missing is unknown.
    """
    check_terms(placement, missing)
    q_BHD, threshold_BN, given_BH = q_BHD.contiguous(), threshold_BN.float().contiguous(), given_BH.float().contiguous()
    (batch, heads, dim), (groups, rows), sets = q_BHD.shape, k_BGSD.shape[1:3], threshold_BN.shape[1]
    pairs, item, count_sm = batch * groups, k_BGSD.element_size(), multiprocessors(q_BHD.device)
    plan = plan or attention_plan(pairs, rows, dim, item, count_sm)
    value_plan = value_plan or value_plan_of(pairs, rows, dim, item, count_sm)
    empty, scored, splits = q_BHD.new_empty, plan.splits, value_plan.splits
    s_BHS, top, total = _scored(q_BHD, k_BGSD, lo_B, hi_B, scale, plan)
    part, sums, lack_BH = (empty(batch, heads, *more, dtype=torch.float32) for more in ((splits, dim), (splits, 3), ()))
    row_BGS, count, count_BG = (empty(batch, groups, *more, dtype=torch.int32) for more in ((rows,), (splits,), ()))
    out_BHD = empty(batch, heads, dim, dtype=storage_dtype(q_BHD.dtype))
    value_gather_kernel[(pairs, splits)](
        s_BHS, row_BGS, v_BGSD, lo_B, hi_B, threshold_BN, top, total, part, sums, count, rows, *v_BGSD.stride()[:3],
        SCORED=scored, BLOCK_SCORED=power_of_2(scored), SPLITS=splits, POST=placement == "post", TOGETHER=sets < heads,
        BLOCK_LOOK=LOOK, BLOCK_FEW=power_of_2(heads // groups), **_cut(value_plan), **_shared(q_BHD, groups),
    )  # fmt: skip
    theta_merge_kernel[(batch * heads,)](
        part, sums, top, threshold_BN, given_BH, count, top if sum_BGD is None else sum_BGD.contiguous(),
        context_B.contiguous(), out_BHD, lack_BH, count_BG, factor, HEADS=heads, SHARING=heads // sets,
        GROUP=heads // groups, DIM=dim, SCORED=scored, SPLITS=splits, MISSING=missing, MEAN=sum_BGD is not None,
        BLOCK_SCORED=power_of_2(scored), BLOCK_SPLITS=power_of_2(splits), BLOCK_DIM=power_of_2(dim), num_warps=4,
        **overlap(q_BHD.device))  # fmt: skip
    return out_BHD.to(q_BHD.dtype), lack_BH, count_BG


def _scored(
    q_BHD: torch.Tensor, k_BGSD: torch.Tensor, lo_B: torch.Tensor, hi_B: torch.Tensor, scale: float, plan: Plan
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scaled scores [B, H, S], and of each split their maximum and sum [B, H, X]."""
    (batch, heads), (groups, rows), splits = q_BHD.shape[:2], k_BGSD.shape[1:3], plan.splits
    s_BHS, top, total = (
        q_BHD.new_empty(batch, heads, size, dtype=torch.float32) for size in (rows, splits, splits)
    )  # fmt: skip
    theta_score_kernel[(batch * groups, splits)](
        q_BHD, k_BGSD, lo_B, hi_B, s_BHS, top, total, scale, rows, *k_BGSD.stride()[:3], SPLITS=splits, **_cut(plan),
        **_shared(q_BHD, groups))  # fmt: skip
    return s_BHS, top, total


def value_plan_of(pairs: int, rows: int, head_dim: int, item_bytes: int, multiprocessor_count: int) -> Plan:
    """Cut the values: small blocks, eight on each SM, of which some look while others read.

    Args:
        pairs: Independent (sequence, KV head) pairs.
        rows: S.
        head_dim: D.
        item_bytes: Bytes of one element.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The plan.
    """
    block_rows = attention_rows(head_dim, item_bytes)
    splits = choose_splits(pairs, -(-rows // LOOK), 8 * multiprocessor_count)
    return Plan(block_rows, splits, num_warps=4 if item_bytes > 2 or head_dim > 128 else 2, num_stages=6)


def _shared(q_BHD: torch.Tensor, groups: int) -> dict[str, Any]:
    group, dim = q_BHD.shape[1] // groups, q_BHD.shape[2]
    return {"KV_HEADS": groups, "GROUP": group, "DIM": dim, "BLOCK_GROUP": max(16, power_of_2(group)),
            "BLOCK_DIM": max(16, power_of_2(dim)), "UPCAST": upcasts(q_BHD.dtype), **overlap(q_BHD.device)}  # fmt: skip


def _cut(plan: Plan) -> dict[str, int]:
    return {"BLOCK_ROWS": plan.block_rows, "num_warps": plan.num_warps, "num_stages": plan.num_stages}
