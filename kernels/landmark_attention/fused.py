"""Landmark attention as flash attention whose tiles hold whole blocks; nothing of size T x S is ever stored.

A past block's rows get their logit plus (landmark's logit - log of the block's own sum of weights): then one online
softmax over all regular rows is the grouped one.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), S key rows,
D head dim, M query rows of a tile, N columns of a tile = NB blocks * PB columns, C rows of a block.
"""

import math

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..interpreter import storage_dtype, upcasts
from ..many_rows import Tiles, tiles_of
from ..tiling import power_of_2
from .eager import check_shapes
from .grouped.fused import block_softmax, load_tile, locate, mixed_logits

FORWARD, NARROW = Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 2)  # the latter: of up to 64 dims and rows a block


@triton.jit
def attend_landmark_kernel(q_ptr, k_ptr, v_ptr, start_ptr, out_ptr, lse_ptr, scale_log2, new, rows,
                           q_batch, q_head, k_batch, k_head, v_batch, v_head, q_row: tl.constexpr,
                           k_row: tl.constexpr, v_row: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
                           DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr, NB: tl.constexpr,
                           PB: tl.constexpr, C: tl.constexpr, PACKED: tl.constexpr,
                           UPCAST: tl.constexpr):  # fmt: skip
    """Attend from one tile of query rows of one head; the grid is (tiles, B * H).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        v_ptr: Values.
        start_ptr: (B, S) first row of each row's document; not read if PACKED is 0.
        out_ptr: (B, H, T, D), contiguous.
        lse_ptr: (B, H, T) log2 of each row's sum of weights, contiguous.
        scale_log2: Factor of the scores, times log2(e).
        new: T.
        rows: S.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        q_row: Stride of the queries' rows; known to the compiler, which then needs one address for a tile, not many.
        k_row: Stride of the keys' rows.
        v_row: Stride of the values' rows.
        HEADS: H.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Query rows of a tile.
        NB: Blocks of a tile.
        PB: Columns of a block.
        C: Rows of a block.
        PACKED: Whether rows have starts of their own.
        UPCAST: Cast to float32 after each load.
    """
    pair = tl.program_id(1)
    batch, head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    # The last rows see most: their tiles come first, and the short ones fill what is left.
    begin = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    local, column = tl.arange(0, M), tl.arange(0, BLOCK_DIM)
    there = begin + local < new
    q_base = q_ptr + batch * q_batch + head * q_head + begin.to(tl.int64) * q_row
    q = load_tile(q_base, local, q_row, column, there, 1, DIM, UPCAST)
    k_base = k_ptr + batch * k_batch + (head // GROUP) * k_head
    v_base = v_ptr + batch * v_batch + (head // GROUP) * v_head
    row = rows - new + begin + local
    low, high = rows - new + begin, rows - new + tl.minimum(begin + M, new)
    start = tl.zeros([M], tl.int32)
    if PACKED:
        start = tl.load(start_ptr + batch * rows + row, mask=there, other=2147483647)
        high = tl.max(tl.where(start <= row, row + 1, low), 0)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BLOCK_DIM], tl.float32)
    # One round for each document of the tile, from the last to the first.
    while high > low:
        first = 0
        if PACKED:
            first = tl.load(start_ptr + batch * rows + high - 1)
        member = there & (start == first) & (row >= first)
        own = (row - first) // C
        past = (tl.maximum(low, first) - first) // C // NB * NB
        ok, at = locate(NB, PB, C)
        for block in range(0, past, NB):
            k_tile = k_base + tl.cast(first + block * C, tl.int64) * k_row
            v_tile = v_base + tl.cast(first + block * C, tl.int64) * v_row
            k = load_tile(k_tile, at, k_row, column, ok, (PB != C) | (DIM != BLOCK_DIM), DIM, UPCAST)
            v = load_tile(v_tile, at, v_row, column, ok, (PB != C) | (DIM != BLOCK_DIM), DIM, UPCAST)
            score = tl.dot(q, tl.trans(k), input_precision="ieee")
            weight, sums, _top, landmark = block_softmax(score, scale_log2, M, NB, PB, C)
            if PACKED:
                landmark = tl.where(member[:, None], landmark, float("-inf"))
            new_top = tl.maximum(top, tl.max(landmark, 1))
            base = new_top
            if PACKED:
                base = tl.where(new_top == float("-inf"), 0.0, new_top)
            share = tl.exp2(landmark - base[:, None])
            decay = tl.exp2(top - base)
            total = total * decay + tl.sum(share, 1)
            weight = tl.reshape(weight * (share / sums)[:, :, None], (M, NB * PB))
            acc = tl.dot(weight.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
            top = new_top
        for block in range(past, (high - 1 - first) // C + 1, NB):
            tile_row = first + block * C
            # What nobody here sees may hold anything: the last row seen stands for it, with no weight.
            far, here = tl.cast(tile_row, tl.int64), tl.minimum(at, high - 1 - tile_row)
            k = load_tile(k_base + far * k_row, here, k_row, column, ok, DIM != BLOCK_DIM, DIM, UPCAST)
            v = load_tile(v_base + far * v_row, here, v_row, column, ok, DIM != BLOCK_DIM, DIM, UPCAST)
            score = tl.dot(q, tl.trans(k), input_precision="ieee")
            logit, _past = mixed_logits(score, scale_log2, row, own, tile_row, block, at, member, M, NB, PB, C)
            new_top = tl.maximum(top, tl.max(tl.max(logit, 2), 1))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
            decay = tl.exp2(top - base)
            weight = tl.reshape(tl.exp2(logit - base[:, None, None]), (M, NB * PB))
            total = total * decay + tl.sum(weight, 1)
            acc = tl.dot(weight.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
            top = new_top
        high = low
        if PACKED:
            high = tl.max(tl.where((start <= row) & (row < first), row + 1, low), 0)
    some = tl.where(total == 0.0, 1.0, total)
    place = (pair.to(tl.int64) * new + begin + local)[:, None] * DIM + column[None, :]
    out = tl.where((total == 0.0)[:, None], 0.0, acc / some[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place, out, mask=there[:, None] & (column < DIM)[None, :])
    lse = tl.where(total == 0.0, float("-inf"), top + tl.log2(some))
    tl.store(lse_ptr + pair.to(tl.int64) * new + begin + local, lse, mask=there)


def landmark_attention(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None = None,
    plan: Tiles | None = None,
) -> torch.Tensor:
    """Attend as the eager twin does, in one pass over keys and values.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        v_BGSD: (B, G, S, D) values; any strides, the last dim contiguous.
        block: C, from 2 to 128.
        scale: Factor of the scores; positive.
        start_BS: (B, S) first row of each row's document, or None.
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        (B, H, T, D) in the dtype of the queries.

    Raises:
        ValueError: If shapes do not fit, the block is too short or too long, the scale not positive, or the last dim
            of a tensor is not contiguous.
    """
    return landmark_forward(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS, plan)[0]


def landmark_forward(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None = None,
    plan: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend, and keep the log of each row's sum of weights, which the gradient needs.

    Args:
        q_BHTD: (B, H, T, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        block: C.
        scale: Factor of the scores.
        start_BS: (B, S) first row of each row's document, or None.
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        (B, H, T, D) in the dtype of the queries; (B, H, T) float32 log of the sum of weights, -inf for padding.

    Raises:
        ValueError: As `landmark_attention`.
    """
    check_fused(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS)
    batch, heads, new, dim = q_BHTD.shape
    groups, rows = k_BGSD.shape[1:3]
    plan = plan or tiles_of(NARROW if max(dim, block) <= 64 else FORWARD, q_BHTD.element_size(), dim)
    padded = power_of_2(block)
    out_BHTD = q_BHTD.new_empty(q_BHTD.shape, dtype=storage_dtype(q_BHTD.dtype))
    lse_BHT = q_BHTD.new_empty(batch, heads, new, dtype=torch.float32)
    attend_landmark_kernel[(triton.cdiv(new, plan.queries), batch * heads)](
        q_BHTD, k_BGSD, v_BGSD, starts_for(start_BS, lse_BHT), out_BHTD, lse_BHT, scale * LOG2_E, new, rows,
        *outer_strides(q_BHTD, k_BGSD, v_BGSD),
        HEADS=heads, GROUP=heads // groups, DIM=dim, BLOCK_DIM=max(16, power_of_2(dim)), M=plan.queries,
        NB=max(1, plan.keys // padded), PB=padded, C=block, PACKED=int(start_BS is not None),
        UPCAST=upcasts(q_BHTD.dtype), num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    return out_BHTD.to(q_BHTD.dtype), lse_BHT * math.log(2)


def outer_strides(*tensors: torch.Tensor) -> list[int]:
    """Give a kernel the strides of some (B, heads, rows, D) tensors: those of batch and heads, then those of rows.

    Args:
        *tensors: Of which the last dim is contiguous.

    Returns:
        Two strides of each tensor, then one of each.
    """
    return [stride for part in tensors for stride in part.stride()[:2]] + [part.stride(2) for part in tensors]


def starts_for(start_BS: torch.Tensor | None, stand_in: torch.Tensor) -> torch.Tensor:
    """Give a kernel its starts, or any tensor where it reads none.

    Args:
        start_BS: (B, S) first row of each row's document, or None.
        stand_in: What is passed where there are none.

    Returns:
        A contiguous tensor.
    """
    return stand_in if start_BS is None else start_BS.to(torch.int32).contiguous()


def check_fused(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None,
) -> None:
    """Refuse what the kernels cannot attend.

    Args:
        q_BHTD: (B, H, T, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        block: C.
        scale: Factor of the scores.
        start_BS: (B, S) first row of each row's document, or None.

    Raises:
        ValueError: As `landmark_attention`.
    """
    check_shapes(q_BHTD, k_BGSD, v_BGSD, block, start_BS)
    check_contiguous_rows(q_BHTD, k_BGSD, v_BGSD)
    if block > 128:
        raise ValueError(f"expected a block of at most 128 rows, got {block}: use the eager twin")
    if scale <= 0:
        raise ValueError(f"expected a positive scale, got {scale}")
