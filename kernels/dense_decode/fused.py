"""Split-KV flash decoding: each block attends to a share of the visible rows, then the shares are combined.

The query heads of one KV head form the rows of one matrix product, so K and V are read once for the group.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, X splits.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import storage_dtype, upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import Plan, multiprocessors, power_of_2
from .cut import dense_plan

LOG2_E = 1.4426950408889634


@triton.jit
def online_softmax(q, k, v, mask, top, total, acc, scale_log2):
    """Add one tile of rows to a running attention.

    Args:
        q: (J, D) queries.
        k: (rows, D) keys.
        v: (rows, D) values.
        mask: (1, rows) whether the row takes part.
        top: (J,) running maximum of the scores, in units of log2.
        total: (J,) running sum of the weights.
        acc: (J, D) running weighted sum of the values.
        scale_log2: Factor of the scores, times log2(e).

    Returns:
        The three running values.
    """
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    score = tl.where(mask, score, float("-inf"))
    new_top = tl.maximum(top, tl.max(score, 1))
    # -inf minus -inf is NaN: until a score is seen, the maximum stands at zero.
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    decay = tl.exp2(top - base)
    weight = tl.exp2(score - base[:, None])
    total = total * decay + tl.sum(weight, 1)
    acc = acc * decay[:, None]
    acc = tl.dot(weight.to(v.dtype), v, acc, input_precision="ieee")
    return new_top, total, acc


@triton.jit
def store_share(out_ptr, lse_ptr, top, total, acc, first, split, SPLITS: tl.constexpr, GROUP: tl.constexpr,
                DIM: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr):  # fmt: skip
    """Store the attention of one split, and the log2 of its sum of weights.

    Args:
        out_ptr: (heads, X, D), contiguous.
        lse_ptr: (heads, X), contiguous.
        top: (J,) maximum of the scores.
        total: (J,) sum of the weights; zero if no row was seen.
        acc: (J, D) weighted sum of the values.
        first: First query head, counted over the batch.
        split: Which split this is.
        SPLITS: X.
        GROUP: J.
        DIM: D.
        BLOCK_GROUP: Power of two, not below J.
        BLOCK_DIM: Power of two, not below D.
    """
    member = tl.arange(0, BLOCK_GROUP)
    column = tl.arange(0, BLOCK_DIM)
    place = (first + member) * SPLITS + split
    some = tl.where(total == 0.0, 1.0, total)
    share = acc / some[:, None]
    mask = (member < GROUP)[:, None] & (column < DIM)[None, :]
    tl.store(out_ptr + place[:, None] * DIM + column[None, :], share.to(out_ptr.dtype.element_ty), mask=mask)
    if SPLITS > 1:
        lse = tl.where(total == 0.0, float("-inf"), top + tl.log2(some))
        tl.store(lse_ptr + place, lse, mask=member < GROUP)


@triton.jit
def attend_kernel(q_ptr, k_ptr, v_ptr, lo_ptr, hi_ptr, out_ptr, lse_ptr, scale_log2,
                  k_batch, k_head, k_row, v_batch, v_head, v_row,
                  KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, KEY_DIM: tl.constexpr,
                  SPLITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
                  BLOCK_KEY: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Attend to one split of the visible rows of one (sequence, KV head); the grid is (B * G, X).

    Args:
        q_ptr: (B, H, W) queries, contiguous.
        k_ptr: Keys.
        v_ptr: Values.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        out_ptr: (B * H, X, D) shares; the result itself if X is 1.
        lse_ptr: (B * H, X) log2 of each share's sum of weights; not used if X is 1.
        scale_log2: Factor of the scores, times log2(e).
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        v_row: Stride of the values.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        KEY_DIM: W.
        SPLITS: X.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 16 and J.
        BLOCK_DIM: Power of two, at least D.
        BLOCK_KEY: Power of two, at least 16 and W.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, split = tl.program_id(0), tl.program_id(1)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    lo, hi = tl.load(lo_ptr + batch), tl.load(hi_ptr + batch)
    # The visible rows are shared, not the capacity of the cache: blocks stay balanced while it fills.
    share = tl.cdiv(tl.cdiv(tl.maximum(hi - lo, 0), BLOCK_ROWS), SPLITS) * BLOCK_ROWS
    start = lo + split * share
    end = tl.minimum(start + share, hi)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    key_column = tl.arange(0, BLOCK_KEY)
    in_dim, in_key = (column < DIM)[None, :], (key_column < KEY_DIM)[None, :]
    q_mask = (member < GROUP)[:, None] & in_key
    q = tl.load(q_ptr + (pair * GROUP + member)[:, None] * KEY_DIM + key_column[None, :], mask=q_mask, other=0.0)
    # Offsets of whole heads and rows exceed 32 bits in a large cache; offsets inside a tile do not.
    batch64, head64, start64 = batch.to(tl.int64), head.to(tl.int64), start.to(tl.int64)
    k_tile = k_ptr + batch64 * k_batch + head64 * k_head + start64 * k_row + row[:, None] * k_row + key_column[None, :]
    v_tile = v_ptr + batch64 * v_batch + head64 * v_head + start64 * v_row + row[:, None] * v_row + column[None, :]
    if UPCAST:
        q = q.to(tl.float32)
    top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    acc = tl.zeros([BLOCK_GROUP, BLOCK_DIM], tl.float32)
    for tile in range(start, end, BLOCK_ROWS):
        seen = tile + row < end
        k = tl.load(k_tile, mask=seen[:, None] & in_key, other=0.0)
        v = tl.load(v_tile, mask=seen[:, None] & in_dim, other=0.0)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        top, total, acc = online_softmax(q, k, v, seen[None, :], top, total, acc, scale_log2)
        k_tile += BLOCK_ROWS * k_row
        v_tile += BLOCK_ROWS * v_row
    store_share(out_ptr, lse_ptr, top, total, acc, pair * GROUP, split, SPLITS, GROUP, DIM, BLOCK_GROUP, BLOCK_DIM)


@triton.jit
def combine_kernel(share_ptr, lse_ptr, out_ptr, DIM: tl.constexpr, SPLITS: tl.constexpr,
                   BLOCK_SPLITS: tl.constexpr, BLOCK_DIM: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Weight the shares of one query head by their sums; the grid is (B * H, D / BLOCK_DIM).

    Args:
        share_ptr: (B * H, X, D) shares.
        lse_ptr: (B * H, X) log2 of their sums of weights.
        out_ptr: (B * H, D).
        DIM: D.
        SPLITS: X.
        BLOCK_SPLITS: Power of two, at least X.
        BLOCK_DIM: Columns of one block.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    head = tl.program_id(0)
    split = tl.arange(0, BLOCK_SPLITS)
    column = tl.program_id(1) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    lse = tl.load(lse_ptr + head * SPLITS + split, mask=split < SPLITS, other=float("-inf"))
    mask = (split < SPLITS)[:, None] & (column < DIM)[None, :]
    share = tl.load(share_ptr + (head * SPLITS + split)[:, None] * DIM + column[None, :], mask=mask, other=0.0)
    top = tl.max(lse, 0)
    weight = tl.exp2(lse - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weight, 0)
    out = tl.sum(share * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + head * DIM + column, out.to(out_ptr.dtype.element_ty), mask=column < DIM)


def combine(
    share_BHXD: torch.Tensor,
    lse_BHX: torch.Tensor,
    dtype: torch.dtype,
    into: torch.Tensor | None = None,
    mode: int = 1,
) -> torch.Tensor:
    """Combine the splits of an attention.

    Args:
        share_BHXD: (B, H, X, D) shares; the result itself if X is 1.
        lse_BHX: (B, H, X) log2 of their sums of weights.
        dtype: Of the result.
        into: Contiguous (B, H, D) to write; a new one if absent.
        mode: Of overlap, as `start_after_others` takes it.

    Returns:
        (B, H, D).
    """
    batch, heads, splits, head_dim = share_BHXD.shape
    if splits == 1:
        return share_BHXD[:, :, 0].to(dtype)
    out_BHD = share_BHXD.new_empty(batch, heads, head_dim, dtype=storage_dtype(dtype)) if into is None else into
    block_dim = 32
    combine_kernel[(batch * heads, triton.cdiv(head_dim, block_dim))](
        share_BHXD, lse_BHX, out_BHD, head_dim, splits, power_of_2(splits), block_dim, num_warps=4,
        **overlap(out_BHD.device, mode),
    )  # fmt: skip
    return out_BHD.to(dtype)


def empty_shares(q_BHD: torch.Tensor, splits: int, dim: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Allocate what the splits of an attention store.

    Args:
        q_BHD: (B, H, D) queries.
        splits: X.
        dim: Of the values, where it is not that of the queries.

    Returns:
        (B, H, X, D) shares, in float32 unless they are the result, and (B, H, X) float32 sums.
    """
    batch, heads, head_dim = q_BHD.shape
    dtype = storage_dtype(q_BHD.dtype) if splits == 1 else torch.float32
    share_BHXD = q_BHD.new_empty(batch, heads, splits, dim or head_dim, dtype=dtype)
    return share_BHXD, q_BHD.new_empty(batch, heads, splits, dtype=torch.float32)


def dense_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
    plan: Plan | None = None,
) -> torch.Tensor:
    """Attend as the eager twin does, in one read of the visible rows.

    Args:
        q_BHD: (B, H, D) queries; head h reads KV head h // J. Queries and keys may both be shorter than values.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        v_BGSD: (B, G, S, D) values; any strides, the last dim contiguous.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        scale: Factor of the scores.
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        (B, H, D), D of the values, in the dtype of the queries; zeros where nothing is visible.

    Raises:
        ValueError: If the last dim of K or V is not contiguous.
    """
    check_contiguous_rows(k_BGSD, v_BGSD)
    q_BHD = q_BHD.contiguous()
    batch, heads, key_dim = q_BHD.shape
    head_dim = v_BGSD.shape[3]
    kv_heads, rows = k_BGSD.shape[1:3]
    plan = plan or dense_plan(
        batch * kv_heads, rows, head_dim, k_BGSD.element_size(), multiprocessors(q_BHD.device)
    )  # fmt: skip
    share_BHXD, lse_BHX = empty_shares(q_BHD, plan.splits, head_dim)
    attend_kernel[(batch * kv_heads, plan.splits)](
        q_BHD, k_BGSD, v_BGSD, lo_B, hi_B, share_BHXD, lse_BHX, scale * LOG2_E,
        *k_BGSD.stride()[:3], *v_BGSD.stride()[:3],
        KV_HEADS=kv_heads, GROUP=heads // kv_heads, DIM=head_dim, KEY_DIM=key_dim, SPLITS=plan.splits,
        BLOCK_ROWS=plan.block_rows, BLOCK_GROUP=max(16, power_of_2(heads // kv_heads)),
        BLOCK_DIM=power_of_2(head_dim), BLOCK_KEY=max(16, power_of_2(key_dim)),
        UPCAST=upcasts(q_BHD.dtype), num_warps=plan.num_warps, num_stages=plan.num_stages,
        **overlap(q_BHD.device, 2),
    )  # fmt: skip
    return combine(share_BHXD, lse_BHX, q_BHD.dtype, mode=2)


def check_contiguous_rows(*caches: torch.Tensor) -> None:
    """Refuse a cache whose rows are not contiguous.

    Args:
        *caches: Tensors of which the last dim must have stride 1.

    Raises:
        ValueError: If one has not.
    """
    for cache in caches:
        if cache.stride(-1) != 1:
            raise ValueError(f"expected rows with stride 1 in the last dim, got strides {cache.stride()}")
