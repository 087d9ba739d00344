"""Flash decoding over chosen rows: tiles of indices are loaded first, then the rows that they name.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, N = G or H sets of rows,
P = N / G sets that share a KV head, Q = H / N query heads that share a set, K width of the sets, X splits.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E, check_contiguous_rows, combine, empty_shares, online_softmax, store_share
from ..interpreter import storage_dtype, upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import Plan, even_plan, gather_plan, multiprocessors, power_of_2


@triton.jit
def attend_tile(q, k_set, v_set, index_tile, count, k_row, v_row, top, total, acc, scale_log2, DIM: tl.constexpr,
                BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Attend to one tile of chosen rows.

    Args:
        q: (Q, D) queries.
        k_set: Pointers to the columns of the first key, (1, D).
        v_set: The same of the values.
        index_tile: Where the first row of the tile is.
        count: How many there are, or more than fit.
        k_row: Stride of the keys.
        v_row: Stride of the values.
        top: As `online_softmax` has it.
        total: As `online_softmax` has it.
        acc: As `online_softmax` has it.
        scale_log2: Factor of the scores, times log2(e).
        DIM: D.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_DIM: Power of two, at least D.
        UPCAST: Cast to float32 after each load.

    Returns:
        What `online_softmax` returns.
    """
    column, row = tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    seen = row < count
    mask = seen[:, None] & (column < DIM)[None, :]
    at = tl.load(index_tile + row, mask=seen, other=0).to(tl.int64)
    k = tl.load(k_set + at[:, None] * k_row, mask=mask, other=0.0)
    v = tl.load(v_set + at[:, None] * v_row, mask=mask, other=0.0)
    if UPCAST:
        k, v = k.to(tl.float32), v.to(tl.float32)
    return online_softmax(q, k, v, seen[None, :], top, total, acc, scale_log2)


@triton.jit
def nothing_attended(BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Give what `online_softmax` begins with.

    Args:
        BLOCK_GROUP: Power of two, at least 16 and Q.
        BLOCK_DIM: Power of two, at least D.

    Returns:
        Its top, total and acc.
    """
    top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    return top, tl.zeros([BLOCK_GROUP], tl.float32), tl.zeros([BLOCK_GROUP, BLOCK_DIM], tl.float32)


@triton.jit
def attend_rows(q, k_set, v_set, index_set, start, end, k_row, v_row, scale_log2, DIM: tl.constexpr,
                BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr, STAGES: tl.constexpr,
                UPCAST: tl.constexpr):  # fmt: skip
    """Attend to some of the chosen rows of one set, which lie one behind the other.

    Args:
        q: (Q, D) queries.
        k_set: Pointers to the columns of the first key, (1, D).
        v_set: The same of the values.
        index_set: Where the first row of the set is.
        start: Place of the first row to attend to.
        end: One past the last.
        k_row: Stride of the keys.
        v_row: Stride of the values.
        scale_log2: Factor of the scores, times log2(e).
        DIM: D.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 16 and Q.
        BLOCK_DIM: Power of two, at least D.
        STAGES: Tiles in flight, half of them between an index and its rows.
        UPCAST: Cast to float32 after each load.

    Returns:
        What `online_softmax` returns.
    """
    top, total, acc = nothing_attended(BLOCK_GROUP, BLOCK_DIM)
    for tile in tl.range(start, end, BLOCK_ROWS, num_stages=STAGES):
        top, total, acc = attend_tile(q, k_set, v_set, index_set + tile, end - tile, k_row, v_row, top, total, acc,
                                      scale_log2, DIM, BLOCK_ROWS, BLOCK_DIM, UPCAST)  # fmt: skip
    return top, total, acc


@triton.jit
def attend_segments(q, k_set, v_set, index_set, count_set, split, width, k_row, v_row, scale_log2, DIM: tl.constexpr,
                    SPLITS: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr,
                    BLOCK_DIM: tl.constexpr, BLOCK_SEGMENTS: tl.constexpr, STAGES: tl.constexpr,
                    UPCAST: tl.constexpr):  # fmt: skip
    """Attend to an equal part of the tiles of one set, whose rows lie at the beginnings of segments.

    Segments are as full as thresholds make them: blocks that had a segment each would wait for the fullest.

    Args:
        q: (Q, D) queries.
        k_set: Pointers to the columns of the first key, (1, D).
        v_set: The same of the values.
        index_set: Where the first row of the set is.
        count_set: Where the first count of the set is.
        split: Which part.
        width: K.
        k_row: Stride of the keys.
        v_row: Stride of the values.
        scale_log2: Factor of the scores, times log2(e).
        DIM: D.
        SPLITS: X.
        SEGMENTS: Equal parts of the index, each of which begins with its valid rows.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 16 and Q.
        BLOCK_DIM: Power of two, at least D.
        BLOCK_SEGMENTS: Power of two, at least SEGMENTS.
        STAGES: As `attend_rows` has it.
        UPCAST: Cast to float32 after each load.

    Returns:
        What `online_softmax` returns.
    """
    segment, room = tl.arange(0, BLOCK_SEGMENTS), width // SEGMENTS
    count = tl.minimum(tl.load(count_set + segment, mask=segment < SEGMENTS, other=0), room)
    tiles = tl.cdiv(count, BLOCK_ROWS)
    end_tile = tl.cumsum(tiles, 0)
    first_tile = end_tile - tiles
    every = tl.sum(tiles, 0)
    top, total, acc = nothing_attended(BLOCK_GROUP, BLOCK_DIM)
    for tile in tl.range(split * every // SPLITS, (split + 1) * every // SPLITS, num_stages=STAGES):
        here = (first_tile <= tile) & (tile < end_tile)
        # Of the one segment here: how many rows are before the tile, and left from there on.
        ahead = (tile - first_tile) * BLOCK_ROWS
        place = tl.sum(tl.where(here, segment * room + ahead, 0), 0)
        left = tl.sum(tl.where(here, count - ahead, 0), 0)
        top, total, acc = attend_tile(q, k_set, v_set, index_set + place, left, k_row, v_row, top, total, acc,
                                      scale_log2, DIM, BLOCK_ROWS, BLOCK_DIM, UPCAST)  # fmt: skip
    return top, total, acc


@triton.jit
def attend_chosen_kernel(q_ptr, k_ptr, v_ptr, index_ptr, count_ptr, out_ptr, lse_ptr, scale_log2, width,
                         k_batch, k_head, k_row, v_batch, v_head, v_row,
                         SETS: tl.constexpr, SHARING: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
                         SPLITS: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                         BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SEGMENTS: tl.constexpr,
                         STAGES: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Attend to one split of the rows of one set; the grid is (B * N, X).

    Args:
        q_ptr: (B, H, D) queries, contiguous.
        k_ptr: Keys.
        v_ptr: Values.
        index_ptr: (B, N, K) rows, contiguous.
        count_ptr: (B, N, segments) valid rows of each segment, contiguous.
        out_ptr: (B * H, X, D) shares; the result itself if X is 1.
        lse_ptr: (B * H, X) log2 of each share's sum of weights; not used if X is 1.
        scale_log2: Factor of the scores, times log2(e).
        width: K.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        v_row: Stride of the values.
        SETS: N.
        SHARING: P.
        GROUP: Q.
        DIM: D.
        SPLITS: X.
        SEGMENTS: Equal parts of the index, each of which begins with its valid rows.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 16 and Q.
        BLOCK_DIM: Power of two, at least D.
        BLOCK_SEGMENTS: Power of two, at least SEGMENTS.
        STAGES: As `attend_rows` has it.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, split = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // SETS).to(tl.int64), ((pair % SETS) // SHARING).to(tl.int64)
    member, column = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM)
    in_dim = (column < DIM)[None, :]
    q_mask = (member < GROUP)[:, None] & in_dim
    q = tl.load(q_ptr + (pair * GROUP + member)[:, None] * DIM + column[None, :], mask=q_mask, other=0.0)
    k_set = k_ptr + batch * k_batch + head * k_head + column[None, :]
    v_set = v_ptr + batch * v_batch + head * v_head + column[None, :]
    index_set = index_ptr + pair.to(tl.int64) * width
    if UPCAST:
        q = q.to(tl.float32)
    if SEGMENTS == 1:
        count = tl.minimum(tl.load(count_ptr + pair), width)
        share = tl.cdiv(tl.cdiv(count, BLOCK_ROWS), SPLITS) * BLOCK_ROWS
        start, end = split * share, tl.minimum((split + 1) * share, count)
        top, total, acc = attend_rows(q, k_set, v_set, index_set, start, end, k_row, v_row, scale_log2, DIM,
                                      BLOCK_ROWS, BLOCK_GROUP, BLOCK_DIM, STAGES, UPCAST)  # fmt: skip
    else:
        count_set = count_ptr + pair * SEGMENTS
        top, total, acc = attend_segments(q, k_set, v_set, index_set, count_set, split, width, k_row, v_row,
                                          scale_log2, DIM, SPLITS, SEGMENTS, BLOCK_ROWS, BLOCK_GROUP, BLOCK_DIM,
                                          BLOCK_SEGMENTS, STAGES, UPCAST)  # fmt: skip
    store_share(out_ptr, lse_ptr, top, total, acc, pair * GROUP, split, SPLITS, GROUP, DIM, BLOCK_GROUP, BLOCK_DIM)


def gather_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    index_BNK: torch.Tensor,
    count_BN: torch.Tensor,
    scale: float,
    plan: Plan | None = None,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend as the eager twin does, reading the chosen rows once for each set.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        v_BGSD: (B, G, S, D) values; any strides, the last dim contiguous.
        index_BNK: (B, N, K) int32 rows, ascending for speed; N = G or N = H.
        count_BN: (B, N) int32, how many of the K are valid; or (B, N, segments), of each equal part of the K.
        scale: Factor of the scores.
        plan: How to cut the work; chosen from the shape if absent.
        into: Contiguous (B, H, D) to write; a new one if absent.

    Returns:
        (B, H, D) in the dtype of the queries; zeros where the count is 0.

    Raises:
        ValueError: If the last dim of K or V is not contiguous.
    """
    check_contiguous_rows(k_BGSD, v_BGSD)
    q_BHD, index_BNK, count_BN = q_BHD.contiguous(), index_BNK.contiguous(), count_BN.contiguous()
    heads, head_dim = q_BHD.shape[1:]
    batch, sets, width = index_BNK.shape
    segments = count_BN.shape[2] if count_BN.dim() == 3 else 1
    if plan is None:
        plan = gather_plan(batch * sets, width, head_dim, k_BGSD.element_size(), multiprocessors(q_BHD.device))
        if count_BN.dim() == 3:
            plan = even_plan(plan, batch * sets, width, multiprocessors(q_BHD.device))
    share_BHXD, lse_BHX = empty_shares(q_BHD, plan.splits)
    if into is not None and storage_dtype(q_BHD.dtype) != q_BHD.dtype:
        return into.copy_(gather_decode(q_BHD, k_BGSD, v_BGSD, index_BNK, count_BN, scale, plan))
    if into is not None and plan.splits == 1:
        share_BHXD = into[:, :, None]
    attend_chosen_kernel[(batch * sets, plan.splits)](
        q_BHD, k_BGSD, v_BGSD, index_BNK, count_BN, share_BHXD, lse_BHX, scale * LOG2_E, width,
        *k_BGSD.stride()[:3], *v_BGSD.stride()[:3],
        SETS=sets, SHARING=sets // k_BGSD.shape[1], GROUP=heads // sets, DIM=head_dim,
        SPLITS=plan.splits, SEGMENTS=segments, BLOCK_ROWS=plan.block_rows,
        BLOCK_GROUP=max(16, power_of_2(heads // sets)), BLOCK_DIM=power_of_2(head_dim),
        BLOCK_SEGMENTS=power_of_2(segments), STAGES=plan.num_stages, UPCAST=upcasts(q_BHD.dtype),
        num_warps=plan.num_warps, num_stages=plan.num_stages, **overlap(q_BHD.device),
    )  # fmt: skip
    return combine(share_BHXD, lse_BHX, q_BHD.dtype, into)
