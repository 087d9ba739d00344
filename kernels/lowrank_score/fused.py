"""Scores of cached rows: tiles of rows stream through one block, which reduces over the group on chip.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, R dims, N = G or H sets of rows.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import upcasts
from ..op import Reduce
from ..overlap.fused import end_soon, overlap, start_after_others
from ..tiling import Plan, multiprocessors, power_of_2, score_plan


@triton.jit
def powers_of(score, seen):
    """Describe scores of one tile by numbers that can be added up, row by row.

    Args:
        score: (rows,) scores.
        seen: (rows,) which of them count.

    Returns:
        (rows, 2, 2) one, itself, square and cube of each that can be chosen.
    """
    usable = seen & (score > float("-inf"))
    known = tl.where(usable, score, 0.0)
    square = known * known
    return tl.join(tl.join(usable.to(tl.float32), known), tl.join(square, square * known))


@triton.jit
def tell(told, powers):
    """Write what a block has described.

    Args:
        told: Pointer to four numbers.
        powers: (rows, 2, 2), as `powers_of` has it, added up over tiles.
    """
    two = tl.arange(0, 2)
    tl.store(told + two[:, None] + 2 * two[None, :], tl.sum(powers, 0))


@triton.jit
def clear(clear_ptr, words, block, BLOCK_CLEAR: tl.constexpr):
    """Set a block's part of some words to zero.

    Args:
        clear_ptr: int64.
        words: How many.
        block: Which block.
        BLOCK_CLEAR: Words of a block, a power of two; nothing is done if 0.
    """
    if BLOCK_CLEAR > 0:
        word = block * BLOCK_CLEAR + tl.arange(0, BLOCK_CLEAR)
        tl.store(clear_ptr + word, tl.zeros([BLOCK_CLEAR], tl.int64), mask=word < words)


@triton.jit
def score_rows(q, k_tile, out_set, start, end, rows, k_row, GROUP: tl.constexpr, DIM: tl.constexpr,
               REDUCE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
               STAGES: tl.constexpr, TELL: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Score some rows of one (sequence, KV head).

    Args:
        q: (R, J) queries.
        k_tile: Pointers to the keys of the first tile, (rows, R).
        out_set: Where the first score of the first set belongs.
        start: First row.
        end: One past the last.
        rows: S.
        k_row: Stride of the keys.
        GROUP: J.
        DIM: R.
        REDUCE: "max", "sum" or "none".
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 8 and J.
        BLOCK_DIM: Power of two, at least 16 and R.
        STAGES: Tiles in flight.
        TELL: Whether the scores are described; not if REDUCE is "none".
        UPCAST: Cast to float32 after each load.

    Returns:
        What `tell` takes; zeros if not TELL.
    """
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    powers = tl.zeros([BLOCK_ROWS, 2, 2], tl.float32)
    for tile in tl.range(start, end, BLOCK_ROWS, num_stages=STAGES):
        at = tile + row
        seen = at < end
        mask = seen[:, None] if DIM == BLOCK_DIM else seen[:, None] & (column < DIM)[None, :]
        k = tl.load(k_tile, mask=mask, other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        score = tl.dot(k, q, input_precision="ieee")
        if REDUCE == "none":
            place = member.to(tl.int64)[None, :] * rows + at[:, None]
            tl.store(out_set + place, score, mask=(member < GROUP)[None, :] & seen[:, None])
        else:
            best = tl.max(score, 1) if REDUCE == "max" else tl.sum(score, 1)
            tl.store(out_set + at, best, mask=seen)
            if TELL:
                powers += powers_of(best, seen)
        k_tile += BLOCK_ROWS * k_row
    return powers


@triton.jit
def score_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, out_ptr, told_ptr, clear_ptr, rows, words, q_batch, q_head,
                 k_batch, k_head, k_row,
                 KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, REDUCE: tl.constexpr,
                 SPLITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr,
                 BLOCK_DIM: tl.constexpr, STAGES: tl.constexpr, TELL: tl.constexpr, BLOCK_CLEAR: tl.constexpr,
                 UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Score a share of the visible rows of one (sequence, KV head); the grid is (B * G, splits).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        out_ptr: (B, N, S) scores, contiguous.
        told_ptr: (B, N, splits, 4) float32 result, if TELL: of the scores of each block that can be chosen, how many,
            and the sums of their first three powers.
        clear_ptr: (words,) int64, set to zero for a kernel after this one.
        rows: S.
        words: How many; none if BLOCK_CLEAR is 0.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: R.
        REDUCE: "max", "sum" or "none".
        SPLITS: Blocks that share the visible rows.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 8 and J.
        BLOCK_DIM: Power of two, at least 16 and R.
        STAGES: Tiles in flight.
        TELL: As `score_rows` has it.
        BLOCK_CLEAR: Words that a block clears, a power of two, or 0.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, split = tl.program_id(0), tl.program_id(1)
    clear(clear_ptr, words, pair * SPLITS + split, BLOCK_CLEAR)
    batch, head = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    lo, hi = tl.load(lo_ptr + batch), tl.load(hi_ptr + batch)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    # Rows are the long side of the product: a tile has no more columns than there are heads, or 8. Columns beyond the
    # group repeat its heads, which no maximum notices.
    at_head, in_dim = member % GROUP if REDUCE == "max" else member, column < DIM
    q_columns = q_ptr + batch * q_batch + (head * GROUP + at_head)[None, :] * q_head + column[:, None]
    q = tl.load(q_columns, mask=(at_head < GROUP)[None, :] & in_dim[:, None], other=0.0)
    out_set = out_ptr + pair.to(tl.int64) * rows
    if REDUCE == "none":
        out_set = out_ptr + pair.to(tl.int64) * GROUP * rows
    if UPCAST:
        q = q.to(tl.float32)
    # The visible rows are shared, not the capacity of the cache; each block begins at a row of its own, so that one
    # comparison tells which rows of a tile are its own.
    share = tl.cdiv(tl.cdiv(tl.maximum(hi - lo, 0), BLOCK_ROWS), SPLITS) * BLOCK_ROWS
    start = lo + split * share
    end = tl.minimum(start + share, hi)
    k_tile = k_ptr + batch * k_batch + head * k_head + start.to(tl.int64) * k_row
    k_tile += row[:, None] * k_row + column[None, :]
    powers = score_rows(q, k_tile, out_set, start, end, rows, k_row, GROUP, DIM, REDUCE, BLOCK_ROWS,
                              BLOCK_GROUP, BLOCK_DIM, STAGES, TELL, UPCAST)  # fmt: skip
    end_soon(OVERLAP)
    if TELL:
        tell(told_ptr + (pair * SPLITS + split) * 4, powers)
    hidden = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    for line in range(GROUP if REDUCE == "none" else 1):
        line_ptr = out_set + tl.cast(line, tl.int64) * rows + row
        for tile in range(split * BLOCK_ROWS, lo, SPLITS * BLOCK_ROWS):
            tl.store(line_ptr + tile, hidden, mask=tile + row < lo)
        for tile in range(tl.maximum(lo, hi) + split * BLOCK_ROWS, rows, SPLITS * BLOCK_ROWS):
            tl.store(line_ptr + tile, hidden, mask=tile + row < rows)


def lowrank_score(
    q_BHR: torch.Tensor,
    k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    reduce: Reduce,
    plan: Plan | None = None,
) -> torch.Tensor:
    """Score as the eager twin does, in one read of the visible rows.

    Args:
        q_BHR: (B, H, R) queries, the last dim contiguous; a slice of wider queries needs no copy.
        k_BGSR: (B, G, S, R) keys, the last dim contiguous; fast if the rows are, too.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        reduce: "max" or "sum" over the query heads of a KV head (N = G), or "none" (N = H).
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        (B, N, S) float32 scores, -inf outside the interval.

    Raises:
        ValueError: If `reduce` is none of the three, or rows are not contiguous.
    """
    return scores_told(q_BHR, k_BGSR, lo_B, hi_B, reduce, plan)[0]


def scores_told(
    q_BHR: torch.Tensor,
    k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    reduce: Reduce,
    plan: Plan | None = None,
    clear: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Score, and tell a choice from the scores what it begins with; without `clear`, scores alone.

    Args:
        q_BHR: As `lowrank_score` has it.
        k_BGSR: As `lowrank_score` has it.
        lo_B: As `lowrank_score` has it.
        hi_B: As `lowrank_score` has it.
        reduce: As `lowrank_score` has it.
        plan: As `lowrank_score` has it.
        clear: int64, contiguous, set to zero; may be empty.

    Returns:
        The scores; and of each block's what `select_topk` wants to be told of them, (B, N, splits, 4) float32, or
        nothing where scores are not reduced.

    Raises:
        ValueError: If `reduce` is none of the three, or rows are not contiguous.
    """
    if reduce not in ("max", "sum", "none"):
        raise ValueError(f"expected reduce among 'max', 'sum', 'none', got {reduce!r}")
    if q_BHR.stride(-1) != 1 or k_BGSR.stride(-1) != 1:
        raise ValueError(f"expected stride 1 in the last dim, got {q_BHR.stride()} and {k_BGSR.stride()}")
    heads = q_BHR.shape[1]
    batch, kv_heads, rows, dims = k_BGSR.shape
    plan = plan or score_plan(batch * kv_heads, rows, dims, k_BGSR.element_size(), multiprocessors(q_BHR.device))
    sets = heads if reduce == "none" else kv_heads
    s_BNS = torch.empty(batch, sets, rows, dtype=torch.float32, device=q_BHR.device)
    tell = clear is not None and reduce != "none"
    told_BNX4 = s_BNS.new_empty(batch, sets, plan.splits, 4) if tell else None
    words = 0 if clear is None else clear.numel()
    filled = told_BNX4 if tell else s_BNS, clear if words else lo_B
    score_kernel[(batch * kv_heads, plan.splits)](
        q_BHR, k_BGSR, lo_B, hi_B, s_BNS, *filled, rows, words, *q_BHR.stride()[:2], *k_BGSR.stride()[:3],
        KV_HEADS=kv_heads, GROUP=heads // kv_heads, DIM=dims, REDUCE=reduce,
        SPLITS=plan.splits, BLOCK_ROWS=plan.block_rows,
        BLOCK_GROUP=max(8, power_of_2(heads // kv_heads)), BLOCK_DIM=max(16, power_of_2(dims)),
        STAGES=plan.num_stages, TELL=tell,
        BLOCK_CLEAR=power_of_2(-(-words // (batch * kv_heads * plan.splits))) if words else 0,
        UPCAST=upcasts(q_BHR.dtype), num_warps=plan.num_warps, num_stages=plan.num_stages,
        **overlap(q_BHR.device, 3 if tell else 1),
    )  # fmt: skip
    return s_BNS, told_BNX4
