"""Attention of many rows to the keys above a threshold, in one pass and in memory that grows with T.

Two running maxima: that of the keys kept scales the output, that of all visible keys the sums of weights. The values of
a tile that no row keeps are not read.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), S key rows,
D head dim, R dims of the ranks, M tokens of a tile, JP = J padded to a power of two, L = M * JP, N keys of a tile.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..grouped_rows.fused import load_keys, load_lines, place_of_rows, ranks_of
from ..interpreter import storage_dtype
from ..kth_score.eager import check_reduce
from ..kth_score.stored.fused import shape_of
from ..many_rows import Tiles, tiles_of
from ..op import Reduce
from ..tiling import power_of_2
from .eager import Kept, Weigh, check_weigh

# By scores, and by ranks, whose sums take more registers.
LINES, LINES_BY_RANKS = Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2)


@triton.jit
def attend_above_kernel(q_ptr, k_ptr, v_ptr, rank_q_ptr, rank_k_ptr, threshold_ptr, shift_ptr, first_ptr, out_ptr,
                        top_ptr, kept_ptr, total_ptr, count_ptr, read_ptr, scale, scale_log2, new, rows, q_batch,
                        q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, rq_batch, rq_head, rq_row,
                        rk_batch, rk_head, rk_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
                        BLOCK_DIM: tl.constexpr, RANK_DIM: tl.constexpr, BLOCK_RANK: tl.constexpr, M: tl.constexpr,
                        JP: tl.constexpr, N: tl.constexpr, SHARED: tl.constexpr, APART: tl.constexpr,
                        SHIFTED: tl.constexpr, BY_RANKS: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Attend from one tile of tokens of one KV head; the grid is (tiles, B * G).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        v_ptr: Values.
        rank_q_ptr: Queries of the ranks; not read if APART is 0.
        rank_k_ptr: Keys of the ranks; not read if APART is 0.
        threshold_ptr: (B, sets, T) thresholds.
        shift_ptr: (B, H, T) shifts; not read if SHIFTED is 0.
        first_ptr: (B,) first row that is no padding.
        out_ptr: (B, H, T, D), contiguous.
        top_ptr: (B, H, T) largest scores.
        kept_ptr: (B, H, T) sums of the weights kept.
        total_ptr: (B, H, T) sums of all weights.
        count_ptr: (B, sets, T) keys kept.
        read_ptr: (B, G, T) keys that any head keeps.
        scale: Factor of the scores.
        scale_log2: The same, times log2(e).
        new: T.
        rows: S.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        v_row: Stride of the values.
        rq_batch: Stride of the ranks' queries.
        rq_head: Stride of the ranks' queries.
        rq_row: Stride of the ranks' queries.
        rk_batch: Stride of the ranks' keys.
        rk_head: Stride of the ranks' keys.
        rk_row: Stride of the ranks' keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        RANK_DIM: R.
        BLOCK_RANK: Power of two, at least 16 and R.
        M: Tokens of a tile.
        JP: Lines of a token.
        N: Keys of a tile.
        SHARED: Whether the group keeps one set.
        APART: Whether ranks have queries and keys of their own.
        SHIFTED: Whether ranks are shifted.
        BY_RANKS: Whether ranks, before they are shifted, are weighed for the sums in place of scores.
        UPCAST: Cast to float32 after each load.
    """
    pair = tl.program_id(1)
    batch, group = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    begin = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    lead = group * GROUP
    q = load_lines(
        q_ptr + batch * q_batch + lead * q_head, begin, new, q_head, q_row, DIM, BLOCK_DIM, M, JP, GROUP, UPCAST
    )
    rank_q = q
    if APART:
        rank_q = load_lines(rank_q_ptr + batch * rq_batch + lead * rq_head, begin, new, rq_head, rq_row, RANK_DIM,
                            BLOCK_RANK, M, JP, GROUP, UPCAST)  # fmt: skip
    k_base, v_base = k_ptr + batch * k_batch + group * k_head, v_ptr + batch * v_batch + group * v_head
    rank_k_base = rank_k_ptr + batch * rk_batch + group * rk_head
    line_place, line_there, token = place_of_rows(pair, begin, new, GROUP, M, JP, 0)
    set_place, set_there, _token = place_of_rows(pair, begin, new, GROUP, M, JP, SHARED)
    token_place, token_there, alone = place_of_rows(pair, begin, new, GROUP, M, JP, 1)
    threshold = tl.load(threshold_ptr + set_place, mask=set_there, other=float("inf"))
    shift = tl.zeros([M * JP], tl.float32)
    if SHIFTED:
        shift = tl.load(shift_ptr + line_place, mask=line_there, other=0.0)
    first, row = tl.load(first_ptr + batch), rows - new + token
    end = rows - new + tl.minimum(begin + M, new)
    top, kept_top = tl.full([M * JP], float("-inf"), tl.float32), tl.full([M * JP], float("-inf"), tl.float32)
    total, kept, inside = (
        tl.zeros([M * JP], tl.float32), tl.zeros([M * JP], tl.float32), tl.zeros([M * JP], tl.float32)
    )  # fmt: skip
    count, read = tl.zeros_like(set_place).to(tl.int32), tl.zeros([M], tl.int32)
    acc = tl.zeros([M * JP, BLOCK_DIM], tl.float32)
    for key in range(first, end, N):
        k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, N, UPCAST)
        product = tl.dot(q, tl.trans(k), input_precision="ieee")
        rank = product * scale
        if APART:
            rank_k = load_keys(rank_k_base, key, end, rk_row, RANK_DIM, BLOCK_RANK, N, UPCAST)
            rank = tl.dot(rank_q, tl.trans(rank_k), input_precision="ieee") * scale
        weighed = rank
        if SHIFTED:
            rank = rank - shift[:, None]
        above = ranks_of(rank, GROUP, M, JP, N, SHARED) > threshold[:, None]
        at = key + tl.arange(0, N)
        seen = at[None, :] <= row[:, None]
        if SHARED:
            # The group keeps the same keys: they are counted before they are spread over its lines.
            above = above & (at[None, :] <= (rows - new + alone)[:, None]) & token_there[:, None]
            found = tl.sum(above.to(tl.int32), 1)
            count, read = count + found, read + found
            keep = tl.reshape(tl.broadcast_to(above[:, None, :], (M, JP, N)), (M * JP, N)) & line_there[:, None]
        else:
            keep = above & seen & line_there[:, None]
            held = keep.to(tl.int32)
            found = tl.sum(held, 1)
            count += found
            read += tl.sum(tl.max(tl.reshape(held, (M, JP, N)), 1), 1)
        score = tl.where(seen, product * scale_log2, float("-inf"))
        told = score
        if BY_RANKS:
            told = tl.where(seen, weighed * (scale_log2 / scale), float("-inf"))
        new_top = tl.maximum(top, tl.max(told, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight_of_all, decay_of_all = tl.exp2(told - base[:, None]), tl.exp2(top - base)
        total = total * decay_of_all + tl.sum(weight_of_all, 1)
        if BY_RANKS:
            inside = inside * decay_of_all + tl.sum(tl.where(keep, weight_of_all, 0.0), 1)
        top = new_top
        if tl.max(found, 0) > 0:
            score = tl.where(keep, score, float("-inf"))
            new_top = tl.maximum(kept_top, tl.max(score, 1))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
            decay = tl.exp2(kept_top - base)
            weight = tl.exp2(score - base[:, None])
            kept = kept * decay + tl.sum(weight, 1)
            v = load_keys(v_base, key, end, v_row, DIM, BLOCK_DIM, N, UPCAST)
            acc = tl.dot(weight.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
            kept_top = new_top
    column = tl.arange(0, BLOCK_DIM)
    out = acc / tl.where(kept == 0.0, 1.0, kept)[:, None]
    mask = line_there[:, None] & (column < DIM)[None, :]
    tl.store(out_ptr + line_place[:, None] * DIM + column[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)
    base = tl.where(top == float("-inf"), 0.0, top)
    tl.store(top_ptr + line_place, top * (scale / scale_log2), mask=line_there)
    by_scores = kept * tl.exp2(tl.where(kept > 0.0, kept_top, base) - base)
    tl.store(kept_ptr + line_place, tl.where(BY_RANKS == 1, inside, by_scores), mask=line_there)
    tl.store(total_ptr + line_place, total, mask=line_there)
    tl.store(count_ptr + set_place, count, mask=set_there)
    tl.store(read_ptr + token_place, read, mask=token_there)


def threshold_prefill(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    rank_q_BHTR: torch.Tensor,
    rank_k_BGSR: torch.Tensor,
    threshold_BNT: torch.Tensor,
    shift_BHT: torch.Tensor | None,
    first_B: torch.Tensor,
    scale: float,
    reduce: Reduce,
    weigh: Weigh = "scores",
    plan: Tiles | None = None,
) -> Kept:
    """Attend as the eager twin does, in one pass.

    Args:
        q_BHTD: (B, H, T, D) queries; any strides, the last dim contiguous, as all tensors with dims.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        rank_q_BHTR: (B, H, T, R) queries of the ranks; the same memory as the queries where exact scores rank.
        rank_k_BGSR: (B, G, S, R) keys of the ranks; the same memory as the keys where exact scores rank, whose
            products then are not computed twice.
        threshold_BNT: (B, N, T) float32.
        shift_BHT: (B, H, T) float32, or None.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the scores and of the ranks; positive.
        reduce: "max" (N = G) or "none" (N = H).
        weigh: "scores" or "ranks".
        plan: How to cut the work, `queries` being lines; chosen from the shape if absent.

    Returns:
        What was kept and what was left.

    Raises:
        ValueError: If `reduce` or `weigh` is neither, the scale is not positive, or the last dim of a tensor is not
            contiguous.
    """
    check_reduce(reduce)
    check_weigh(weigh)
    check_contiguous_rows(q_BHTD, k_BGSD, v_BGSD, rank_q_BHTR, rank_k_BGSR)
    if scale <= 0:
        raise ValueError(f"expected a positive scale, got {scale}")
    batch, _, new, dim = q_BHTD.shape
    groups, rows = k_BGSD.shape[1:3]
    plan = plan or tiles_of(LINES_BY_RANKS if weigh == "ranks" else LINES, q_BHTD.element_size(), dim)
    shape = shape_of(q_BHTD, groups, threshold_BNT.shape[1], plan)
    kept = _empty(q_BHTD, threshold_BNT, groups)
    apart = int(not (_same(rank_k_BGSR, k_BGSD) and _same(rank_q_BHTR, q_BHTD)))
    attend_above_kernel[(triton.cdiv(new, shape["M"]), batch * groups)](
        q_BHTD, k_BGSD, v_BGSD, rank_q_BHTR, rank_k_BGSR, threshold_BNT.float().contiguous(),
        threshold_BNT if shift_BHT is None else shift_BHT.float().contiguous(), first_B, *kept, scale, scale * LOG2_E,
        new, rows, *q_BHTD.stride()[:3], *k_BGSD.stride()[:3], *v_BGSD.stride()[:3], *rank_q_BHTR.stride()[:3],
        *rank_k_BGSR.stride()[:3], RANK_DIM=rank_q_BHTR.shape[3],
        BLOCK_RANK=max(16, power_of_2(rank_q_BHTR.shape[3])), APART=apart, SHIFTED=int(shift_BHT is not None),
        BY_RANKS=int(weigh == "ranks"), **shape,
    )  # fmt: skip
    return kept._replace(out_BHTD=kept.out_BHTD.to(q_BHTD.dtype))


def _empty(q_BHTD: torch.Tensor, threshold_BNT: torch.Tensor, groups: int) -> Kept:
    batch, _, new, _ = q_BHTD.shape
    out = q_BHTD.new_empty(q_BHTD.shape, dtype=storage_dtype(q_BHTD.dtype))
    sums = (q_BHTD.new_empty(q_BHTD.shape[:3], dtype=torch.float32) for _ in range(3))
    counts = (q_BHTD.new_empty(batch, sets, new, dtype=torch.int32) for sets in (threshold_BNT.shape[1], groups))
    return Kept(out, *sums, *counts)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
