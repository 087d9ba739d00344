"""The gradient of landmark attention with respect to keys and values: each block of threads owns a range of keys.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), S key rows,
D head dim, M query rows of a tile, N columns of a tile = NB blocks * PB columns, C rows of a block.
"""

import torch
import triton
import triton.language as tl

from ...landmark_attention.grouped.fused import load_tile, locate
from ...many_rows import Tiles
from ..of_tile.fused import logit_gradient, mixed_weights, past_weights

OF_KEYS = Tiles(128, 64, 8, 2)
MOST_SUMMED = 8192  # elements of one gradient's sums, if the other's stand in registers, too


@triton.jit
def add_tile(weight, share, q, do, v, delta, dk, dv, KEYS: tl.constexpr, VALUES: tl.constexpr, M: tl.constexpr,
             NB: tl.constexpr, PB: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Add what one tile of queries gives.

    Args:
        weight: (M, NB, PB) weights.
        share: (M, NB) their sums in past blocks, 0 elsewhere.
        q: (M, D) queries.
        do: (M, D) gradient of their output.
        v: (N, D) values.
        delta: (M,) output times gradient.
        dk: (N, D) gradient of the keys so far.
        dv: (N, D) gradient of the values so far.
        KEYS: Whether the former is summed.
        VALUES: Whether the latter is.
        M: Query rows.
        NB: Blocks.
        PB: Columns of a block.
        C: Rows of a block.

    Returns:
        Both sums.
    """
    if VALUES:
        part = tl.reshape(weight, (M, NB * PB)).to(do.dtype)
        dv = tl.dot(tl.trans(part), do, dv, input_precision="ieee")
    if KEYS:
        product = tl.dot(do, tl.trans(v), input_precision="ieee")
        grad = logit_gradient(weight, share, product, delta, M, NB, PB, C)
        dk = tl.dot(tl.trans(grad.to(q.dtype)), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def key_gradient_kernel(q_ptr, k_ptr, v_ptr, grad_ptr, start_ptr, end_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, scale,
                        scale_log2, new, rows, q_batch, q_head, k_batch, k_head, v_batch, v_head, g_batch, g_head,
                        q_row: tl.constexpr, k_row: tl.constexpr, v_row: tl.constexpr, g_row: tl.constexpr,
                        KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
                        M: tl.constexpr, NB: tl.constexpr, PB: tl.constexpr, C: tl.constexpr, PACKED: tl.constexpr,
                        UPCAST: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr):  # fmt: skip
    """Sum the gradients of the blocks that begin within NB * C rows of one KV head; the grid is (ranges, B * G).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        v_ptr: Values.
        grad_ptr: Gradients of the output.
        start_ptr: (B, S) first row of each row's document; not read if PACKED is 0.
        end_ptr: (B, S) one past the last row of each row's document; not read if PACKED is 0.
        lse_ptr: (B, H, T) log2 of each row's sum of weights.
        delta_ptr: (B, H, T) output times gradient.
        dk_ptr: (B, G, S, D), contiguous.
        dv_ptr: (B, G, S, D), contiguous.
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
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Query rows of a tile.
        NB: Blocks of a tile.
        PB: Columns of a block.
        C: Rows of a block.
        PACKED: Whether rows have starts of their own.
        UPCAST: Cast to float32 after each load.
        KEYS: Whether the gradient of the keys is summed.
        VALUES: Whether that of the values is.
    """
    pair, begin = tl.program_id(1), tl.program_id(0) * (NB * C)
    batch, group = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    local, column = tl.arange(0, M), tl.arange(0, BLOCK_DIM)
    k_base = k_ptr + batch * k_batch + group * k_head
    v_base = v_ptr + batch * v_batch + group * v_head
    ok, at = locate(NB, PB, C)
    high = tl.minimum(begin + NB * C, rows)
    span = begin + tl.arange(0, NB * PB)
    start = tl.zeros([NB * PB], tl.int32)
    if PACKED:
        start = tl.load(start_ptr + batch * rows + span, mask=span < high, other=2147483647)
        high = tl.max(tl.where(start <= span, span + 1, begin), 0)
    # One round for each document of the range, from the last to the first.
    while high > begin:
        first, end = 0, rows
        if PACKED:
            first = tl.load(start_ptr + batch * rows + high - 1)
            end = tl.load(end_ptr + batch * rows + high - 1)
        first_block = tl.cdiv(tl.maximum(begin - first, 0), C)
        tile_row = first + first_block * C
        # Rows that are none stand for the last one, whose weights then are zero: a mask would stand in registers.
        far, here = tl.cast(tile_row, tl.int64), tl.minimum(at, end - 1 - tile_row)
        k = load_tile(k_base + far * k_row, here, k_row, column, ok, DIM != BLOCK_DIM, DIM, UPCAST)
        v = load_tile(v_base + far * v_row, here, v_row, column, ok, DIM != BLOCK_DIM, DIM, UPCAST)
        dk, dv = tl.zeros([NB * PB, BLOCK_DIM], tl.float32), tl.zeros([NB * PB, BLOCK_DIM], tl.float32)
        near = tl.maximum(tile_row, rows - new)
        mixed = near + tl.cdiv(tl.maximum(tl.minimum(tile_row + NB * C, end) - near, 0), M) * M
        for member in range(GROUP):
            head = group * GROUP + member
            # Rows are counted from the tensor's begin, queries from the first of them.
            q_base = q_ptr + batch * q_batch + head * q_head - tl.cast(rows - new, tl.int64) * q_row
            g_base = grad_ptr + batch * g_batch + head * g_head - tl.cast(rows - new, tl.int64) * g_row
            of_head = (batch * KV_HEADS * GROUP + head) * new - (rows - new)
            for query in tl.range(near, tl.minimum(mixed, end), M, num_stages=1):
                row = query + local
                there, far = row < end, tl.cast(query, tl.int64)
                inner = tl.minimum(local, end - 1 - query)
                q = load_tile(q_base + far * q_row, inner, q_row, column, there, DIM != BLOCK_DIM, DIM, UPCAST)
                do = load_tile(g_base + far * g_row, inner, g_row, column, there, DIM != BLOCK_DIM, DIM, UPCAST)
                lse = tl.load(lse_ptr + of_head + row, mask=there, other=float("inf"))
                delta = tl.load(delta_ptr + of_head + row, mask=there, other=0.0)
                score = tl.dot(q, tl.trans(k), input_precision="ieee")
                weight, share = mixed_weights(score, lse, scale_log2, row, (row - first) // C, tile_row, first_block,
                                              at, there, M, NB, PB, C)  # fmt: skip
                dk, dv = add_tile(weight, share, q, do, v, delta, dk, dv, KEYS, VALUES, M, NB, PB, C)
            for query in range(mixed, end, M):
                row = query + local
                there, far = row < end, tl.cast(query, tl.int64)
                inner = tl.minimum(local, end - 1 - query)
                q = load_tile(q_base + far * q_row, inner, q_row, column, there, DIM != BLOCK_DIM, DIM, UPCAST)
                do = load_tile(g_base + far * g_row, inner, g_row, column, there, DIM != BLOCK_DIM, DIM, UPCAST)
                lse = tl.load(lse_ptr + of_head + row, mask=there, other=float("inf"))
                delta = tl.load(delta_ptr + of_head + row, mask=there, other=0.0)
                score = tl.dot(q, tl.trans(k), input_precision="ieee")
                weight, share = past_weights(score, lse, scale_log2, M, NB, PB, C)
                dk, dv = add_tile(weight, share, q, do, v, delta, dk, dv, KEYS, VALUES, M, NB, PB, C)
        # Offsets within the tile are short: long ones would stand in registers all the while.
        far, place = (pair.to(tl.int64) * rows + tile_row) * DIM, at[:, None] * DIM + column[None, :]
        mask = (ok & (tile_row + at < end))[:, None] & (column < DIM)[None, :]
        if KEYS:
            tl.store(dk_ptr + far + place, (dk * scale).to(dk_ptr.dtype.element_ty), mask=mask)
        if VALUES:
            tl.store(dv_ptr + far + place, dv.to(dv_ptr.dtype.element_ty), mask=mask)
        high = begin
        if PACKED:
            high = tl.max(tl.where((start <= span) & (span < first), span + 1, begin), 0)


def passes_of(shape: dict[str, int | bool]) -> list[tuple[int, int]]:
    """Choose what is summed together: 128 columns of 128 dims twice leave no registers for the tile itself.

    Args:
        shape: Constants of the kernel.

    Returns:
        (KEYS, VALUES) of each launch.
    """
    return [(0, 1), (1, 0)] if shape["NB"] * shape["PB"] * shape["BLOCK_DIM"] > MOST_SUMMED else [(1, 1)]


def ends_for(start_BS: torch.Tensor) -> torch.Tensor:
    """Find where each row's document ends.

    Args:
        start_BS: (B, S) int32 first row of each row's document, never falling along S.

    Returns:
        (B, S) int32, one past its last row.
    """
    return torch.searchsorted(start_BS, start_BS, right=True, out_int32=True)
