"""Split-KV attention of one row that keeps its scores, and a second launch that turns them into marks.

Shape legend: B batch, H query heads, G KV heads, J = H / G, N sets of heads that are marked alike, S rows in the cache,
D head dim, X splits.
"""

import math

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..interpreter import storage_dtype, upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import Plan, attention_plan, multiprocessors, power_of_2
from .eager import Marked

LN_2 = tl.constexpr(math.log(2))
WEIGHTS = 2048  # that a block turns into marks


@triton.jit
def attend_marked_kernel(q_ptr, k_ptr, v_ptr, lo_ptr, hi_ptr, share_ptr, lse_ptr, score_ptr, scale_log2, rows, k_batch,
                         k_head, k_row, v_batch, v_head, v_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
                         DIM: tl.constexpr, SPLITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr,
                         BLOCK_DIM: tl.constexpr, MARKED: tl.constexpr, UPCAST: tl.constexpr,
                         OVERLAP: tl.constexpr):  # fmt: skip
    """Attend to one split of the visible rows of one (sequence, KV head); the grid is (B * G, X).

    Args:
        q_ptr: (B, H, D) queries, contiguous.
        k_ptr: Keys.
        v_ptr: Values.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        share_ptr: (B * H, X, D) shares.
        lse_ptr: (B * H, X) log2 of each share's sum of weights.
        score_ptr: (B * H, S) scores in units of log2; not written if MARKED is 0.
        scale_log2: Factor of the scores, times log2(e).
        rows: S.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        v_row: Stride of the values.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        SPLITS: X.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 16 and J.
        BLOCK_DIM: Power of two, at least 16 and D.
        MARKED: Whether scores are kept.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    lo, hi = tl.load(lo_ptr + batch), tl.load(hi_ptr + batch)
    share = tl.cdiv(tl.cdiv(tl.maximum(hi - lo, 0), BLOCK_ROWS), SPLITS) * BLOCK_ROWS
    start = lo + split * share
    end = tl.minimum(start + share, hi)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    in_group, in_dim = member < GROUP, column < DIM
    line = pair * GROUP + member
    both = in_group[:, None] & in_dim[None, :]
    q = tl.load(q_ptr + line[:, None] * DIM + column[None, :], mask=both, other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    k_tile = k_ptr + batch * k_batch + head * k_head + (start + row).to(tl.int64)[:, None] * k_row + column[None, :]
    v_tile = v_ptr + batch * v_batch + head * v_head + (start + row).to(tl.int64)[:, None] * v_row + column[None, :]
    top, total = tl.full([BLOCK_GROUP], float("-inf"), tl.float32), tl.zeros([BLOCK_GROUP], tl.float32)
    acc = tl.zeros([BLOCK_GROUP, BLOCK_DIM], tl.float32)
    for tile in range(start, end, BLOCK_ROWS):
        seen = tile + row < end
        k = tl.load(k_tile, mask=seen[:, None] & in_dim[None, :], other=0.0)
        v = tl.load(v_tile, mask=seen[:, None] & in_dim[None, :], other=0.0)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        if MARKED:
            at = score_ptr + line[:, None] * rows + (tile + row)[None, :]
            tl.store(at, score, mask=in_group[:, None] & seen[None, :])
        score = tl.where(seen[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay, weight = tl.exp2(top - base), tl.exp2(score - base[:, None])
        total = total * decay + tl.sum(weight, 1)
        acc = tl.dot(weight.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        top = new_top
        k_tile += BLOCK_ROWS * k_row
        v_tile += BLOCK_ROWS * v_row
    some = tl.where(total == 0.0, 1.0, total)
    place = line * SPLITS + split
    tl.store(share_ptr + place[:, None] * DIM + column[None, :], acc / some[:, None], mask=both)
    tl.store(lse_ptr + place, tl.where(total == 0.0, float("-inf"), top + tl.log2(some)), mask=in_group)


@triton.jit
def mark_kernel(share_ptr, lse_ptr, score_ptr, lo_ptr, hi_ptr, out_ptr, log_ptr, marks_ptr, carry, rows, marks_batch,
                marks_head, marks_row, SETS: tl.constexpr, MEMBERS: tl.constexpr, ALIKE: tl.constexpr,
                DIM: tl.constexpr, SPLITS: tl.constexpr, BLOCK_MEMBERS: tl.constexpr, BLOCK_ALIKE: tl.constexpr,
                BLOCK_SPLITS: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr, MARKED: tl.constexpr,
                OVERLAP: tl.constexpr):  # fmt: skip
    """Join the shares of one head, or write some marks of its set; the grid is (B * N, H / N + S / BLOCK_ROWS).

    Args:
        share_ptr: (B * H, X, D) shares.
        lse_ptr: (B * H, X) log2 of their sums of weights.
        score_ptr: (B * H, S) scores in units of log2.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        out_ptr: (B, H, D).
        log_ptr: (B, H) logs of the sums of weights.
        marks_ptr: Marks, written.
        carry: Factor of the marks that there are.
        rows: S.
        marks_batch: Stride of the marks.
        marks_head: Stride of the marks.
        marks_row: Stride of the marks.
        SETS: N.
        MEMBERS: H / N.
        ALIKE: G / N.
        DIM: D.
        SPLITS: X.
        BLOCK_MEMBERS: Power of two, at least H / N.
        BLOCK_ALIKE: Power of two, at least G / N.
        BLOCK_SPLITS: Power of two, at least X.
        BLOCK_DIM: Power of two, at least D.
        BLOCK_ROWS: Rows that a block marks.
        MARKED: Whether there are marks.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    split = tl.arange(0, BLOCK_SPLITS)
    if part < MEMBERS:
        line, column = pair * MEMBERS + part, tl.arange(0, BLOCK_DIM)
        lse = tl.load(lse_ptr + line * SPLITS + split, mask=split < SPLITS, other=float("-inf"))
        mask = (split < SPLITS)[:, None] & (column < DIM)[None, :]
        share_at = share_ptr + (line * SPLITS + split)[:, None] * DIM + column[None, :]
        share = tl.load(share_at, mask=mask, other=0.0)
        top = tl.max(lse, 0)
        weight = tl.exp2(lse - tl.where(top == float("-inf"), 0.0, top))
        total = tl.sum(weight, 0)
        some = tl.where(total == 0.0, 1.0, total)
        out = tl.sum(share * weight[:, None], 0) / some
        tl.store(out_ptr + line * DIM + column, out.to(out_ptr.dtype.element_ty), mask=column < DIM)
        tl.store(log_ptr + line, tl.where(total == 0.0, float("-inf"), (top + tl.log2(some)) * LN_2))
    elif MARKED:
        batch, first = pair // SETS, pair % SETS * ALIKE
        member, alike = tl.arange(0, BLOCK_MEMBERS), tl.arange(0, BLOCK_ALIKE)
        row = (part - MEMBERS) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        own, known, inside = pair * MEMBERS + member, (member < MEMBERS)[:, None], (row < rows)[None, :]
        marks_at = (
            marks_ptr
            + batch * marks_batch
            + (first + alike)[:, None] * marks_head
            + row.to(tl.int64)[None, :] * marks_row
        )
        held = (alike < ALIKE)[:, None] & inside
        # all is asked for before anything is waited for, rows that turn out to be hidden too
        logs_at = lse_ptr + own[:, None] * SPLITS + split[None, :]
        logs = tl.load(logs_at, mask=known & (split < SPLITS)[None, :], other=float("-inf"))
        score = tl.load(score_ptr + own[:, None] * rows + row[None, :], mask=known & inside, other=float("-inf"))
        marks = tl.load(marks_at, mask=held, other=0.0)
        seen = (row >= tl.load(lo_ptr + batch)) & (row < tl.load(hi_ptr + batch))
        most = tl.max(logs, 1)
        most = tl.where(most == float("-inf"), 0.0, most)
        whole = most + tl.log2(tl.sum(tl.exp2(logs - most[:, None]), 1))
        gained = tl.sum(tl.where(known & seen[None, :], tl.exp2(score - whole[:, None]), 0.0), 0)
        carried = tl.where(carry == 0.0, 0.0, carry * marks)  # not even NaN is kept
        tl.store(marks_at, carried + gained[None, :], mask=held & seen[None, :])


def marked_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
    marks_BGS: torch.Tensor,
    carry: float,
    sets: int,
    plan: Plan | None = None,
) -> Marked:
    """Attend and mark as the eager twin does.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        v_BGSD: (B, G, S, D) values; likewise.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        scale: Factor of the scores.
        marks_BGS: (B, G, S) float32, written where rows are visible; any strides; (B, G, 0) where no marks are kept.
        carry: Factor of the marks that there are.
        sets: N, sets of heads whose weights are summed: G, or 1 where KV heads are marked alike.
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        Means in the dtype of the queries, float32 logs of the sums of weights, and the marks.

    Raises:
        ValueError: If the last dim of K or V is not contiguous.
    """
    check_contiguous_rows(k_BGSD, v_BGSD)
    q_BHD = q_BHD.contiguous()
    batch, heads, dim = q_BHD.shape
    groups, rows = k_BGSD.shape[1:3]
    pairs, share, device = batch * groups, heads // groups, q_BHD.device
    plan = plan or attention_plan(pairs, rows, dim, k_BGSD.element_size(), multiprocessors(device))
    marked = marks_BGS.shape[2] > 0
    shares = torch.empty(batch, heads, plan.splits, dim, dtype=torch.float32, device=device)
    lse = torch.empty(batch, heads, plan.splits, dtype=torch.float32, device=device)
    scores = torch.empty(batch, heads, rows if marked else 1, dtype=torch.float32, device=device)
    out = torch.empty(batch, heads, dim, dtype=storage_dtype(q_BHD.dtype), device=device)
    log = torch.empty(batch, heads, dtype=torch.float32, device=device)
    how = {"DIM": dim, "SPLITS": plan.splits, "MARKED": marked, **overlap(device)}
    attend_marked_kernel[(pairs, plan.splits)](
        q_BHD, k_BGSD, v_BGSD, lo_B, hi_B, shares, lse, scores, scale * LOG2_E, rows, *k_BGSD.stride()[:3],
        *v_BGSD.stride()[:3], KV_HEADS=groups, GROUP=share, BLOCK_ROWS=plan.block_rows,
        BLOCK_GROUP=max(16, power_of_2(share)), BLOCK_DIM=max(16, power_of_2(dim)), UPCAST=upcasts(q_BHD.dtype),
        num_warps=plan.num_warps, num_stages=plan.num_stages, **how,
    )  # fmt: skip
    members, alike = heads // sets, groups // sets
    block = max(16, min(1024, power_of_2(rows), WEIGHTS // power_of_2(members)))
    mark_kernel[(batch * sets, members + (triton.cdiv(rows, block) if marked else 0))](
        shares, lse, scores, lo_B, hi_B, out, log, marks_BGS, carry, rows, *marks_BGS.stride(), SETS=sets,
        MEMBERS=members, ALIKE=alike, BLOCK_MEMBERS=power_of_2(members), BLOCK_ALIKE=power_of_2(alike),
        BLOCK_SPLITS=power_of_2(plan.splits), BLOCK_DIM=max(16, power_of_2(dim)), BLOCK_ROWS=block, num_warps=4, **how,
    )  # fmt: skip
    return Marked(out.to(q_BHD.dtype), log, marks_BGS)
