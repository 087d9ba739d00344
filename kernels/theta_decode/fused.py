"""Attention above thresholds: keys are read once for the scores, then the values of the rows that are kept.

Three launches: scores with the softmax's maximum and sum, kept values, and the parts of all blocks together. The
thresholds are known beforehand, so nothing is searched or sorted. Where the heads of a group share their rows, and
thresholds are of scores, rows are named while they are scored, and only scores of such rows reach memory. Thresholds of
weights need the sums of all first, and heads that each have rows of their own together keep most: there all scores are
written, and looked at again.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, N sets, X and Y
splits of the scores and of the values, W rows of the former.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ..interpreter import storage_dtype, upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import Plan, attention_plan, attention_rows, choose_splits, multiprocessors, power_of_2
from .eager import check_terms
from .known.fused import score_and_mark_kernel
from .marked.fused import marked_values_kernel
from .merge.fused import theta_merge_kernel
from .values.fused import ALIGN, value_gather_kernel

LOG2_E = tl.constexpr(1.4426950408889634)
# Scores of a head that are looked at together.
LOOK = 1024
# Rows of a cache that are worth a block for the values of those kept.
VALUE_ROWS = 512
# Parts of a head that the merge puts together.
MOST_PARTS = 128
# What is kept of a cache, written by the first two launches: parts, their sums, largest scores and sums of weights of
# the splits, and how many rows were read.
Kept = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


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
        value_plan: How to cut the values; chosen from the shape if absent. Where rows are named its splits are rounded
            to a multiple of those of the scores.

    Returns:
        out_BHD, lack_BH and count_BG as the eager twin.

    Raises:
        ValueError: If placement or missing is unknown.
    """
    check_terms(placement, missing)
    q_BHD, threshold_BN, given_BH = q_BHD.contiguous(), threshold_BN.float().contiguous(), given_BH.float().contiguous()
    (batch, heads, dim), (groups, rows), sets = q_BHD.shape, k_BGSD.shape[1:3], threshold_BN.shape[1]
    shape = batch * groups, rows, dim, k_BGSD.element_size(), multiprocessors(q_BHD.device)
    plan = plan or attention_plan(*shape)
    given, named = (q_BHD, k_BGSD, v_BGSD, lo_B, hi_B, scale, threshold_BN), placement == "pre" and sets < heads
    if named:
        kept = _named_while_scored(*given, plan, value_plan or marked_plan(*shape))
    else:
        kept = _looked_at_again(*given, placement, plan, value_plan or value_plan_of(*shape))
    part, sums, top, total, count = kept
    splits, lack_BH = part.shape[2], q_BHD.new_empty(batch, heads, dtype=torch.float32)
    out_BHD, count_BG = torch.empty_like(q_BHD, dtype=storage_dtype(q_BHD.dtype)), count.new_empty(batch, groups)
    theta_merge_kernel[(batch * heads,)](
        part, sums, top, total, lo_B, hi_B, threshold_BN, given_BH, count,
        top if sum_BGD is None else sum_BGD.contiguous(), context_B.contiguous(), out_BHD, lack_BH, count_BG, factor,
        HEADS=heads, SHARING=heads // sets, GROUP=heads // groups, DIM=dim, SCORED=plan.splits, SPLITS=splits,
        NAMED=named, MISSING=missing, MEAN=sum_BGD is not None, BLOCK_SCORED=power_of_2(plan.splits),
        BLOCK_SPLITS=power_of_2(splits), BLOCK_DIM=power_of_2(dim), num_warps=4, **overlap(q_BHD.device))  # fmt: skip
    return out_BHD.to(q_BHD.dtype), lack_BH, count_BG


def _named_while_scored(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
    threshold_BN: torch.Tensor,
    plan: Plan,
    value_plan: Plan,
) -> Kept:
    """A threshold of scores for each group: the first launch names rows, the second reads those that are kept."""
    (batch, heads), (groups, rows), scored = q_BHD.shape[:2], k_BGSD.shape[1:3], plan.splits
    width = plan.block_rows * triton.cdiv(triton.cdiv(rows, plan.block_rows), scored)
    row_BGXW, named_BGX = (q_BHD.new_empty(batch, groups, scored, *n, dtype=torch.int32) for n in ((width,), ()))
    s_BGXWJ = q_BHD.new_empty(batch, groups, scored, width, heads // groups, dtype=torch.float32)
    top, total = (q_BHD.new_empty(batch, heads, scored, dtype=torch.float32) for _ in range(2))
    both = _shared(q_BHD, groups) | {"BLOCK_GROUP": max(8, power_of_2(heads // groups))}
    score_and_mark_kernel[(batch * groups, scored)](
        q_BHD, k_BGSD, lo_B, hi_B, threshold_BN, row_BGXW, s_BGXWJ, named_BGX, top, total, scale, rows, width,
        *k_BGSD.stride()[:3], SPLITS=scored, **_cut(plan), **both)  # fmt: skip
    splits = scored * max(1, min(triton.cdiv(value_plan.splits, scored), MOST_PARTS // scored))
    part, sums, count = _parts(q_BHD, groups, splits, 1)
    marked_values_kernel[(batch * groups, splits)](
        row_BGXW, s_BGXWJ, named_BGX, v_BGSD, threshold_BN, top, part, sums, count, width, *v_BGSD.stride()[:3],
        SCORED=scored, BLOCK_SCORED=power_of_2(scored), SPLITS=splits, **_cut(value_plan), **both)  # fmt: skip
    return part, sums, top, total, count


def _looked_at_again(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
    threshold_BN: torch.Tensor,
    placement: str,
    plan: Plan,
    value_plan: Plan,
) -> Kept:
    """Thresholds of weights, or one for each head: the first launch writes all scores, the second looks at them."""
    (batch, heads), (groups, rows) = q_BHD.shape[:2], k_BGSD.shape[1:3]
    scored, splits = plan.splits, value_plan.splits
    s_BHS, top, total = (q_BHD.new_empty(batch, heads, n, dtype=torch.float32) for n in (rows, scored, scored))
    theta_score_kernel[(batch * groups, scored)](
        q_BHD, k_BGSD, lo_B, hi_B, s_BHS, top, total, scale, rows, *k_BGSD.stride()[:3], SPLITS=scored, **_cut(plan),
        **_shared(q_BHD, groups))  # fmt: skip
    part, sums, count = _parts(q_BHD, groups, splits, 3)
    row_BGS = count.new_empty(batch, groups, rows)
    value_gather_kernel[(batch * groups, splits)](
        s_BHS, row_BGS, v_BGSD, lo_B, hi_B, threshold_BN, top, total, part, sums, count, rows, *v_BGSD.stride()[:3],
        SCORED=scored, BLOCK_SCORED=power_of_2(scored), SPLITS=splits, POST=placement == "post",
        TOGETHER=threshold_BN.shape[1] < heads, BLOCK_LOOK=LOOK, BLOCK_FEW=power_of_2(heads // groups),
        **_cut(value_plan), **_shared(q_BHD, groups))  # fmt: skip
    return part, sums, top, total, count


def _parts(q_BHD: torch.Tensor, groups: int, splits: int, sums: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What each split of the values leaves: parts [B, H, Y, D], sums [B, H, Y, ...] and counts [B, G, Y]."""
    batch, heads, dim = q_BHD.shape
    part, few = (q_BHD.new_empty(batch, heads, splits, n, dtype=torch.float32) for n in (dim, sums))
    return part, few, q_BHD.new_empty(batch, groups, splits, dtype=torch.int32)


def marked_plan(pairs: int, rows: int, head_dim: int, item_bytes: int, multiprocessor_count: int) -> Plan:
    """Cut the values of rows that are named: small blocks, four on each SM.

    Args:
        pairs: Independent (sequence, KV head) pairs.
        rows: S.
        head_dim: D.
        item_bytes: Bytes of one element.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The plan; its splits are rounded to a multiple of those of the scores.
    """
    splits = choose_splits(pairs, -(-rows // VALUE_ROWS), 4 * multiprocessor_count)
    # Four warps multiply from shared memory, in a third of the registers that two need to hold rows.
    return Plan(max(16, attention_rows(head_dim, item_bytes) // 2), splits, num_warps=4, num_stages=6)


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
