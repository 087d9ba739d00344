"""Parts of values above thresholds put together, and what dropped rows weigh put into the denominator.

Where rows were named while they were scored, dropped ones were looked at only then: they weigh what all do less what is
kept.

Shape legend: B batch, H query heads, D head dim, N sets, X and Y splits of the scores and of the values.
"""

import triton
import triton.language as tl

from ...overlap.fused import start_after_others

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def theta_merge_kernel(part_ptr, sums_ptr, top_ptr, total_ptr, lo_ptr, hi_ptr, threshold_ptr, given_ptr, count_ptr,
                       value_ptr, context_ptr, out_ptr, lack_ptr, read_ptr, factor, HEADS: tl.constexpr,
                       SHARING: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, SCORED: tl.constexpr,
                       SPLITS: tl.constexpr, NAMED: tl.constexpr, MISSING: tl.constexpr, MEAN: tl.constexpr,
                       BLOCK_SCORED: tl.constexpr, BLOCK_SPLITS: tl.constexpr, BLOCK_DIM: tl.constexpr,
                       OVERLAP: tl.constexpr):  # fmt: skip
    """Put the splits of one query head together, and what is missing into the denominator; the grid is (B * H,).

    Args:
        part_ptr: (B * H, Y, D) values times weights.
        sums_ptr: (B * H, Y, 3) weight kept, weight dropped, rows dropped; with NAMED (B * H, Y) weight kept.
        top_ptr: (B * H, X) largest scores.
        total_ptr: (B * H, X) sums of exp(score - top).
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        threshold_ptr: (B, N) float32.
        given_ptr: (B, H) float32.
        count_ptr: (B * G, Y) int32 rows read.
        value_ptr: (B, G, D) float32, sums of values, contiguous; not used without MEAN.
        context_ptr: (B,) visible rows.
        out_ptr: (B, H, D) result.
        lack_ptr: (B, H) float32 result.
        read_ptr: (B, G) int32 result: their sums.
        factor: Of what is missing.
        HEADS: H.
        SHARING: H / N.
        GROUP: H / G.
        DIM: D.
        SCORED: X.
        SPLITS: Y.
        NAMED: Whether only rows that were named were looked at: what is dropped is all but what is kept.
        MISSING: "none", "exact", "threshold" or "given".
        MEAN: Whether the mean of the values is given the weight that lacks.
        BLOCK_SCORED: Power of two, at least X.
        BLOCK_SPLITS: Power of two, at least Y.
        BLOCK_DIM: Power of two, at least D.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    head = tl.program_id(0)
    split, column = tl.arange(0, BLOCK_SPLITS), tl.arange(0, BLOCK_DIM)
    inside = split < SPLITS
    count = tl.sum(tl.load(count_ptr + head // GROUP * SPLITS + split, mask=inside, other=0), 0)
    if head % GROUP == 0:
        tl.store(read_ptr + head // GROUP, count)
    sums = sums_ptr + (head * SPLITS + split) * (1 if NAMED else 3)
    kept = tl.sum(tl.load(sums, mask=inside, other=0.0), 0)
    other = tl.arange(0, BLOCK_SCORED)
    tops = tl.load(top_ptr + head * SCORED + other, mask=other < SCORED, other=float("-inf"))
    weights = tl.load(total_ptr + head * SCORED + other, mask=other < SCORED, other=0.0)
    top = tl.max(tops, 0)
    # -inf minus -inf is NaN: without rows the maximum stands at zero
    total = tl.sum(weights * tl.exp2((tops - tl.where(top == float("-inf"), 0.0, top)) * LOG2_E), 0)
    visible = tl.maximum(tl.load(hi_ptr + head // HEADS) - tl.load(lo_ptr + head // HEADS), 0)
    if NAMED:
        number = (visible - count).to(tl.float32)
        # where nothing is dropped, what is left is rounding
        dropped = tl.where(number > 0, tl.maximum(total - kept, 0.0), 0.0)
    else:
        dropped = tl.sum(tl.load(sums + 1, mask=inside, other=0.0), 0)
        number = tl.sum(tl.load(sums + 2, mask=inside, other=0.0), 0)
    kept = tl.where((total >= 0) | (visible == 0), kept, total)  # NaN of a row that was not kept
    miss = kept * 0.0
    if MISSING == "exact":
        miss = dropped * factor
    elif MISSING == "threshold":
        below = tl.minimum(tl.load(threshold_ptr + head // SHARING) - top, 0.0)
        miss = tl.where(number > 0, number * tl.exp2(below * LOG2_E) * factor, 0.0)
    elif MISSING == "given":
        miss = tl.where(number > 0, tl.load(given_ptr + head) * factor, 0.0)
    whole = tl.maximum(kept + miss, 1.1754943508222875e-38, propagate_nan=tl.PropagateNan.ALL)
    place = (head * SPLITS + split)[:, None] * DIM + column[None, :]
    part = tl.load(part_ptr + place, mask=inside[:, None] & (column < DIM)[None, :], other=0.0)
    out = tl.sum(part, 0) / whole
    if MEAN:
        values = tl.load(value_ptr + head // GROUP * DIM + column, mask=column < DIM, other=0.0)
        context = tl.maximum(tl.load(context_ptr + head // HEADS).to(tl.int32), 1)
        out += miss / whole * (values / context.to(tl.float32))
    tl.store(out_ptr + head * DIM + column, out.to(out_ptr.dtype.element_ty), mask=column < DIM)
    tl.store(lack_ptr + head, miss / whole)
