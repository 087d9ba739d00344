"""The gradient of landmark attention in two kernels: one over tiles of queries, one over tiles of keys.

Each recomputes the weights from the saved sums, and writes what it owns once; nothing is added to through memory. In a
past block, with weight w = p * e (p of the landmark, e within the block) and dP = dO V^T: the landmark's logit gets
p * (sum(e dP) - delta), a regular row w * (dP - sum(e dP)).

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), S key rows,
D head dim, M query rows of a tile, N columns of a tile = NB blocks * PB columns, C rows of a block.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E
from ..interpreter import storage_dtype, upcasts
from ..landmark_attention.fused import check_fused, landmark_forward, outer_strides, starts_for
from ..landmark_attention.grouped.fused import load_tile, locate
from ..many_rows import Tiles, tiles_of
from ..tiling import power_of_2
from . import by_sums
from .of_keys.fused import OF_KEYS, ends_for, key_gradient_kernel, passes_of
from .of_rows.fused import row_products
from .of_tile.fused import logit_gradient, mixed_weights, past_weights

OF_QUERIES = Tiles(128, 64, 8, 3)


@triton.jit
def query_gradient_kernel(q_ptr, k_ptr, v_ptr, grad_ptr, start_ptr, lse_ptr, delta_ptr, dq_ptr, scale, scale_log2,
                          new, rows, q_batch, q_head, k_batch, k_head, v_batch, v_head, g_batch, g_head,
                          q_row: tl.constexpr, k_row: tl.constexpr, v_row: tl.constexpr, g_row: tl.constexpr,
                          HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
                          M: tl.constexpr, NB: tl.constexpr, PB: tl.constexpr, C: tl.constexpr,
                          PACKED: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Sum the gradient of one tile of query rows of one head; the grid is (tiles, B * H).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        v_ptr: Values.
        grad_ptr: Gradients of the output.
        start_ptr: (B, S) first row of each row's document; not read if PACKED is 0.
        lse_ptr: (B, H, T) log2 of each row's sum of weights.
        delta_ptr: (B, H, T) output times gradient.
        dq_ptr: (B, H, T, D), contiguous.
        scale: Factor of the scores.
        scale_log2: The same, times log2(e).
        new: T.
        rows: S.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        g_batch: Stride of the gradients.
        g_head: Stride of the gradients.
        q_row: Stride of the queries' rows; known to the compiler, which then needs one address for a tile, not many.
        k_row: Stride of the keys' rows.
        v_row: Stride of the values' rows.
        g_row: Stride of the gradients' rows.
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
    begin = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    local, column = tl.arange(0, M), tl.arange(0, BLOCK_DIM)
    there = begin + local < new
    far = begin.to(tl.int64)
    q = load_tile(q_ptr + batch * q_batch + head * q_head + far * q_row, local, q_row, column, there, 1, DIM, UPCAST)
    do = load_tile(
        grad_ptr + batch * g_batch + head * g_head + far * g_row, local, g_row, column, there, 1, DIM, UPCAST
    )
    k_base = k_ptr + batch * k_batch + (head // GROUP) * k_head
    v_base = v_ptr + batch * v_batch + (head // GROUP) * v_head
    place = pair.to(tl.int64) * new + begin + local
    lse = tl.load(lse_ptr + place, mask=there, other=float("inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    delta = tl.load(delta_ptr + place, mask=there, other=0.0)
    row = rows - new + begin + local
    low, high = rows - new + begin, rows - new + tl.minimum(begin + M, new)
    start = tl.zeros([M], tl.int32)
    if PACKED:
        start = tl.load(start_ptr + batch * rows + row, mask=there, other=2147483647)
        high = tl.max(tl.where(start <= row, row + 1, low), 0)
    dq = tl.zeros([M, BLOCK_DIM], tl.float32)
    ok, at = locate(NB, PB, C)
    while high > low:
        first = 0
        if PACKED:
            first = tl.load(start_ptr + batch * rows + high - 1)
        member = there & (start == first) & (row >= first)
        sums = tl.where(member, lse, float("inf"))
        own = (row - first) // C
        past = (tl.maximum(low, first) - first) // C // NB * NB
        for block in range(0, past, NB):
            far = tl.cast(first + block * C, tl.int64)
            k = load_tile(k_base + far * k_row, at, k_row, column, ok, (PB != C) | (DIM != BLOCK_DIM), DIM, UPCAST)
            v = load_tile(v_base + far * v_row, at, v_row, column, ok, (PB != C) | (DIM != BLOCK_DIM), DIM, UPCAST)
            score = tl.dot(q, tl.trans(k), input_precision="ieee")
            weight, share = past_weights(score, sums, scale_log2, M, NB, PB, C)
            product = tl.dot(do, tl.trans(v), input_precision="ieee")
            grad = logit_gradient(weight, share, product, delta, M, NB, PB, C)
            dq = tl.dot(grad.to(k.dtype), k, dq, input_precision="ieee")
        for block in range(past, (high - 1 - first) // C + 1, NB):
            tile_row = first + block * C
            far, here = tl.cast(tile_row, tl.int64), tl.minimum(at, high - 1 - tile_row)
            k = load_tile(k_base + far * k_row, here, k_row, column, ok, DIM != BLOCK_DIM, DIM, UPCAST)
            v = load_tile(v_base + far * v_row, here, v_row, column, ok, DIM != BLOCK_DIM, DIM, UPCAST)
            score = tl.dot(q, tl.trans(k), input_precision="ieee")
            weight, share = mixed_weights(score, sums, scale_log2, row, own, tile_row, block, at, member, M, NB, PB, C)
            product = tl.dot(do, tl.trans(v), input_precision="ieee")
            grad = logit_gradient(weight, share, product, delta, M, NB, PB, C)
            dq = tl.dot(grad.to(k.dtype), k, dq, input_precision="ieee")
        high = low
        if PACKED:
            high = tl.max(tl.where((start <= row) & (row < first), row + 1, low), 0)
    dq = tl.where((lse == float("inf"))[:, None], 0.0, dq * scale).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + place[:, None] * DIM + column[None, :], dq, mask=there[:, None] & (column < DIM)[None, :])


def landmark_gradient(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    grad_BHTD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Differentiate as the eager twin does; the forward pass is run first, for its sums.

    Args:
        q_BHTD: (B, H, T, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        grad_BHTD: (B, H, T, D) gradient of the output.
        block: C, from 2 to 128.
        scale: Factor of the scores; positive.
        start_BS: (B, S) first row of each row's document, or None.

    Returns:
        The gradients of q, k and v, in their dtypes.

    Raises:
        ValueError: As `landmark_attention`.
    """
    out_BHTD, lse_BHT = landmark_forward(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS)
    return landmark_backward(q_BHTD, k_BGSD, v_BGSD, out_BHTD, lse_BHT, grad_BHTD, block, scale, start_BS)


def landmark_backward(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    out_BHTD: torch.Tensor,
    lse_BHT: torch.Tensor,
    grad_BHTD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None = None,
    plans: tuple[Tiles, Tiles] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Differentiate, given what the forward pass returned.

    Args:
        q_BHTD: (B, H, T, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        out_BHTD: (B, H, T, D) the output.
        lse_BHT: (B, H, T) float32 log of the rows' sums of weights.
        grad_BHTD: (B, H, T, D) gradient of the output.
        block: C.
        scale: Factor of the scores.
        start_BS: (B, S) first row of each row's document, or None.
        plans: How to cut the kernels over queries and over keys; chosen from the shape if absent.

    Returns:
        The gradients of q, k and v, in their dtypes.

    Raises:
        ValueError: As `landmark_attention`.
    """
    if plans is None and start_BS is None and by_sums.suits(q_BHTD, k_BGSD, block):
        return by_sums.landmark_backward(q_BHTD, k_BGSD, v_BGSD, out_BHTD, lse_BHT, grad_BHTD, block, scale)
    check_fused(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS)
    grad_BHTD = grad_BHTD if grad_BHTD.stride(-1) == 1 else grad_BHTD.contiguous()
    lse_BHT, delta_BHT = lse_BHT * LOG2_E, row_products(out_BHTD, grad_BHTD)
    shape = (q_BHTD.element_size(), q_BHTD.shape[3])
    of_queries, of_keys = plans or (tiles_of(OF_QUERIES, *shape), tiles_of(OF_KEYS, *shape))
    start = starts_for(start_BS, lse_BHT)
    tensors = (q_BHTD, k_BGSD, v_BGSD, grad_BHTD, start)
    common = (lse_BHT, delta_BHT, block, scale, start_BS is not None)
    dq_BHTD = _of_queries(*tensors, *common, of_queries)
    dk_BGSD, dv_BGSD = _of_keys(*tensors, *common, of_keys)
    return dq_BHTD.to(q_BHTD.dtype), dk_BGSD.to(k_BGSD.dtype), dv_BGSD.to(v_BGSD.dtype)


def _shape(q: torch.Tensor, k: torch.Tensor, block: int, packed: bool, plan: Tiles) -> dict[str, int | bool]:  # noqa: FBT001
    padded = power_of_2(block)
    columns = max(padded, plan.keys)
    return {
        "GROUP": q.shape[1] // k.shape[1], "DIM": q.shape[3], "BLOCK_DIM": max(16, power_of_2(q.shape[3])),
        "M": max(16, plan.queries * plan.keys // columns), "NB": columns // padded, "PB": padded, "C": block,
        "PACKED": int(packed), "UPCAST": upcasts(q.dtype), "num_warps": plan.num_warps, "num_stages": plan.num_stages,
    }  # fmt: skip


def _of_queries(q, k, v, grad, start, lse, delta, block, scale, packed, plan):
    shape = _shape(q, k, block, packed, plan)
    dq = torch.empty(q.shape, dtype=storage_dtype(q.dtype), device=q.device)
    query_gradient_kernel[(triton.cdiv(q.shape[2], shape["M"]), q.shape[0] * q.shape[1])](
        q, k, v, grad, start, lse, delta, dq, scale, scale * LOG2_E, q.shape[2], k.shape[2],
        *outer_strides(q, k, v, grad), HEADS=q.shape[1], **shape,
    )  # fmt: skip
    return dq


def _of_keys(q, k, v, grad, start, lse, delta, block, scale, packed, plan):
    # Padding belongs to no block, and nobody writes it.
    make = torch.zeros if packed else torch.empty
    dk, dv = (make(k.shape, dtype=storage_dtype(k.dtype), device=k.device) for _ in range(2))
    shape = _shape(q, k, block, packed, plan)
    end = ends_for(start) if packed else start
    passes = passes_of(shape)
    if len(passes) > 1:  # with sums of one gradient alone, a tile has room for all of its queries
        shape["M"] = max(16, plan.queries)
    for keys, values in passes:
        key_gradient_kernel[(triton.cdiv(k.shape[2], shape["NB"] * block), k.shape[0] * k.shape[1])](
            q, k, v, grad, start, end, lse, delta, dk, dv, scale, scale * LOG2_E, q.shape[2], k.shape[2],
            *outer_strides(q, k, v, grad), KV_HEADS=k.shape[1], KEYS=keys, VALUES=values, **shape,
        )  # fmt: skip
    return dk, dv
