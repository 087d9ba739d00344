"""Rows above a threshold, appended as they are scored; a second launch mends the sets that are out of bounds.

Weights are held against a point below the threshold, not against a running maximum: each is an exponent and two
additions, and sums are taken across a block once, at its end. The best scores of real text lie up to 2^240 above the
threshold, so weights are capped: those of rows that are dropped, none of which ranks above the threshold, never reach
the cap, and beside one that does they are less than float32 can tell from nothing. A head whose weights are all too
small for float32, far below the best of its group, is summed again.

Both launches are always made. The second one adds up the weights of each head and, where a set holds too few rows or
too many, scores it again and searches the k-th, with as many blocks as the GPU has left: a set costs what a selection
costs, so such sets must be few. What these blocks tell each other by is cleared by the first launch.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, R dims, X segments, W rows of one.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ..bundle.fused import appended, bundle_of, flagged
from ..interpreter import interpreted, upcasts
from ..overlap.fused import end_soon, overlap, start_after_others
from ..tiling import Plan, multiprocessors, power_of_2, theta_plan
from .bound.fused import CAP, SMALLEST, base_of, bound_kernel, threshold_of
from .joint.fused import LOG2_E
from .mend import MendPlan, mend_plan

# Scores that a block looks at together while it searches.
SEARCH_ROWS = 2048
# Numbers that are looked at together to find the sets that are out of bounds.
TALLIES = 2048
# So few leave room for a block of the second launch beside four of the first, which it then waits beside.
BOUND_REGISTERS = 208


@triton.jit
def lines_of(score, LINES: tl.constexpr):
    """Take each head's scores once.

    Args:
        score: (rows, columns), neighbours of which are one head.
        LINES: 1 where there is one head; else columns of which no two are one head, as many as there are or half.

    Returns:
        (rows, LINES).
    """
    own = score
    if LINES == 1:
        own = tl.max(score, 1)[:, None]
    elif score.shape[1] > LINES:
        own, _same = tl.split(tl.reshape(score, [score.shape[0], LINES, 2]))
    return own


@triton.jit
def score_and_weigh_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, threshold_ptr, least_ptr, index_ptr, count_ptr, sums_ptr,
                           tally_ptr, board_ptr, board_words, scale, rows, segment_rows, threshold_batch,
                           threshold_head, q_batch, q_head,
                           k_batch, k_head, k_row,
                           KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, SEGMENTS: tl.constexpr,
                           BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
                           LINES: tl.constexpr, TILES: tl.constexpr, BLOCK_WORDS: tl.constexpr, UPCAST: tl.constexpr,
                           OVERLAP: tl.constexpr):  # fmt: skip
    """Keep the rows of one segment that pass, and sum the weights of each head; the grid is (B * G, X).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        threshold_ptr: (B, G) float32.
        least_ptr: (B,) int32.
        index_ptr: (B, G, X, W) int32 result.
        count_ptr: (B, G, X) int32 result.
        sums_ptr: (B * H, X, 2) float32 result: sum of exp(score - base), the same of the rows kept.
        tally_ptr: (B, G, X) int32 result: twice the rows kept, and 1 where the weights of some head are below float32.
        board_ptr: Words of the second launch, int64, cleared.
        board_words: How many.
        scale: Factor of the scores.
        rows: S.
        segment_rows: W.
        threshold_batch: Stride of the thresholds.
        threshold_head: Stride of the thresholds.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: R.
        SEGMENTS: X.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 8 and J.
        BLOCK_DIM: Power of two, at least 16 and R.
        LINES: 1 where the group is one head, whose best score is its own; else columns of which no two are one head.
        TILES: Tiles of a bundle.
        BLOCK_WORDS: Words that a block clears, a power of two.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, segment = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    word = (pair * SEGMENTS + segment) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
    tl.store(board_ptr + word, tl.zeros([BLOCK_WORDS], tl.int64), mask=word < board_words)
    first = segment * segment_rows
    lo, hi = tl.load(lo_ptr + batch), tl.minimum(tl.load(hi_ptr + batch), rows)
    threshold = threshold_of(
        threshold_ptr + batch * threshold_batch + head * threshold_head, least_ptr + batch, hi - lo
    )
    lo, hi = tl.maximum(lo, first), tl.minimum(hi, first + segment_rows)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    # Rows are the long side of the product; columns beyond the group repeat its heads, which no maximum notices. Those
    # of one head are neighbours, which one thread holds.
    in_dim, copies = column < DIM, BLOCK_GROUP // LINES
    at_head = head * GROUP + member // copies % GROUP
    q_columns = q_ptr + batch * q_batch + at_head[None, :] * q_head + column[:, None]
    q = tl.load(q_columns, mask=in_dim[:, None], other=0.0)
    k_tile = k_ptr + batch * k_batch + head * k_head + lo.to(tl.int64) * k_row
    k_tile += row[:, None] * k_row + column[None, :]
    out = index_ptr + (pair.to(tl.int64) * SEGMENTS + segment) * segment_rows
    kept, filled, word = segment * 0, segment * 0, tl.zeros([BLOCK_ROWS], tl.uint32)
    base, scale_log2 = base_of(threshold), scale * LOG2_E
    whole, chosen = tl.zeros([BLOCK_ROWS, LINES], tl.float32), tl.zeros([BLOCK_ROWS, LINES], tl.float32)
    if UPCAST:
        q = q.to(tl.float32)
    for tile in range(lo, hi, BLOCK_ROWS):
        at = tile + row
        seen = at < hi
        k = tl.load(k_tile, mask=seen[:, None] if DIM == BLOCK_DIM else seen[:, None] & in_dim[None, :], other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        score = tl.dot(k, q, input_precision="ieee")
        own = lines_of(score, LINES)
        best = tl.max(own, 1)
        passing = seen & (best * scale > threshold)
        word = flagged(word, passing, TILES)
        filled += 1
        if filled == TILES:
            kept, filled = appended(out, kept, word, tile + BLOCK_ROWS, TILES, TILES), filled * 0
        # What is not counted is multiplied by zero, so it must be finite; of a NaN that makes NaN, which is told. An
        # infinite score is one that is capped.
        weight = tl.exp2(tl.minimum(own * scale_log2 - base, CAP, propagate_nan=tl.PropagateNan.ALL))
        whole += weight * seen.to(tl.float32)[:, None]
        chosen += weight * passing.to(tl.float32)[:, None]
        k_tile += BLOCK_ROWS * k_row
    if filled > 0:
        kept = appended(out, kept, word, lo + tl.cdiv(hi - lo, BLOCK_ROWS) * BLOCK_ROWS, filled, TILES)
    end_soon(OVERLAP)
    tl.store(count_ptr + pair * SEGMENTS + segment, kept)
    line = tl.arange(0, LINES)
    place = sums_ptr + ((pair * GROUP + line) * SEGMENTS + segment) * 2
    whole = tl.sum(whole, 0)
    weak = tl.max(((line < GROUP) & ((whole >= SMALLEST) == 0)).to(tl.int32), 0)
    tl.store(tally_ptr + pair * SEGMENTS + segment, kept * 2 + weak)
    tl.store(place, whole, mask=line < GROUP)
    tl.store(place + 1, tl.sum(chosen, 0), mask=line < GROUP)


def theta_rows(
    q_BHR: torch.Tensor,
    k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
    threshold_BG: torch.Tensor,
    least_B: torch.Tensor,
    most_B: torch.Tensor,
    segments: int,
    plan: Plan | None = None,
    mend: MendPlan | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose as the eager twin does, in one read of the visible rows while sets keep their bounds.

    Args:
        q_BHR: (B, H, R) queries, the last dim contiguous.
        k_BGSR: (B, G, S, R) keys, the last dim contiguous.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        scale: Factor of the scores.
        threshold_BG: (B, G) float32.
        least_B: (B,) int32.
        most_B: (B,) int32.
        segments: X.
        plan: How to cut the work; its splits are not used. Chosen from the shape if absent.
        mend: How sets that are out of bounds are shared; chosen from the shape if absent.

    Returns:
        index_BGK, count_BGX and share_BH as the eager twin.

    Raises:
        ValueError: If rows are not contiguous.
    """
    if q_BHR.stride(-1) != 1 or k_BGSR.stride(-1) != 1:
        raise ValueError(f"expected stride 1 in the last dim, got {q_BHR.stride()} and {k_BGSR.stride()}")
    heads, (batch, groups, rows, dims) = q_BHR.shape[1], k_BGSR.shape
    shape = batch * groups, rows, dims, k_BGSR.element_size()
    plan = plan or theta_plan(dims, k_BGSR.element_size())
    width = triton.cdiv(rows, segments)
    index_BGK, count_BGX = (q_BHR.new_empty(batch, groups, n, dtype=torch.int32) for n in (segments * width, segments))
    sums = q_BHR.new_empty(batch, heads, segments, 2, dtype=torch.float32)
    threshold_BG = threshold_BG.float()
    # blocks of the interpreter run one after the other, and may not wait
    mend = mend or mend_plan(*shape, 1 if interpreted() else multiprocessors(q_BHR.device))
    tally_BGX, board = torch.empty_like(count_BGX), q_BHR.new_empty(mend.board_words, dtype=torch.int64)
    strides = (*threshold_BG.stride(), *q_BHR.stride()[:2], *k_BGSR.stride()[:3])
    columns = max(8, power_of_2(heads // groups))
    lines, own = (1, 1) if heads == groups else (columns, max(columns // 2, power_of_2(heads // groups)))
    both = {"KV_HEADS": groups, "GROUP": heads // groups, "DIM": dims, "SEGMENTS": segments, "LINES": lines,
            "BLOCK_GROUP": columns, "BLOCK_DIM": max(16, power_of_2(dims)), "UPCAST": upcasts(q_BHR.dtype),
            **overlap(q_BHR.device, 3)}  # fmt: skip
    given = q_BHR, k_BGSR, lo_B, hi_B, threshold_BG, least_B
    score_and_weigh_kernel[(batch * groups, segments)](
        *given, index_BGK, count_BGX, sums, tally_BGX, board, mend.board_words, scale, rows, width, *strides,
        **both | {"LINES": own}, TILES=bundle_of(plan.block_rows), BLOCK_ROWS=plan.block_rows,
        BLOCK_WORDS=power_of_2(triton.cdiv(mend.board_words, batch * groups * segments)),
        num_warps=plan.num_warps, num_stages=plan.num_stages)  # fmt: skip
    made = index_BGK, count_BGX, sums
    return index_BGK, count_BGX, mended_BH(given, most_B, made, tally_BGX, board, scale, strides, mend, both)


def mended_BH(
    given: tuple[torch.Tensor, ...],
    most_B: torch.Tensor,
    made: tuple[torch.Tensor, ...],
    tally_BGX: torch.Tensor,
    board: torch.Tensor,
    scale: float,
    strides: tuple[int, ...],
    mend: MendPlan,
    both: dict[str, Any],
) -> torch.Tensor:
    """Launch what mends the sets that are out of their bounds.

    Args:
        given: Queries, keys, bounds, thresholds and fewest rows, as both launches take them.
        most_B: (B,) int32.
        made: Index, counts and sums of the first launch; the first two are mended.
        tally_BGX: (B, G, X) int32 of the first launch.
        board: Words that it cleared.
        scale: Factor of the scores.
        strides: Of thresholds, queries and keys.
        mend: How sets are shared.
        both: Constants of both launches.

    Returns:
        share_BH, (B, H) float32.
    """
    (q_BHR, k_BGSR), segments = given[:2], tally_BGX.shape[2]
    (batch, groups, rows), heads = k_BGSR.shape[:3], q_BHR.shape[1]
    share_BH, rank_BGS = (q_BHR.new_empty(batch, *size, dtype=torch.float32) for size in ((heads,), (groups, rows)))
    parts = q_BHR.new_empty(mend.boards, mend.most_chunks, both["LINES"], 3, dtype=torch.float32)
    block_segments = power_of_2(segments)
    bound_kernel[(mend.slots,)](
        *given, most_B, *made, share_BH, rank_BGS, tally_BGX, board, parts, scale, batch * groups, rows,
        made[0].shape[2] // segments, mend.slots, mend.most_chunks, mend.words, *strides, **both,
        BLOCK_HEADS=power_of_2(triton.cdiv(batch * heads, mend.slots)),
        BLOCK_SETS=max(16, min(power_of_2(batch * groups), TALLIES // block_segments)), BLOCK_SEGMENTS=block_segments,
        BLOCK_CHUNKS=power_of_2(mend.most_chunks), BLOCK_ROWS=mend.block_rows,
        BLOCK_SEARCH=min(SEARCH_ROWS, max(16, power_of_2(rows))), num_warps=4, num_stages=3,
        maxnreg=BOUND_REGISTERS)  # fmt: skip
    return share_BH
