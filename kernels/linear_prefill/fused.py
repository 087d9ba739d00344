"""Causal linear attention in three steps: sums of each chunk, a running sum over chunks, then all rows at once.

Products are in three passes of tf32, nearly float32: features of a polynomial map differ by orders of magnitude.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T rows, F features, D head dim, N chunks of M rows.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..tiling import power_of_2
from .eager import CHUNK, Linear

FEATURES = 32


@triton.jit
def chunk_sums_kernel(k_ptr, v_ptr, sums_ptr, norms_ptr, rows, chunks, k_batch, k_head, k_row, v_batch, v_head, v_row,
                      KV_HEADS: tl.constexpr, FEATURES: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
                      M: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Sum one tile of features over one chunk; the grid is (N, feature tiles, B * G).

    Args:
        k_ptr: Features of keys.
        v_ptr: Values.
        sums_ptr: (B * G, N, F, D).
        norms_ptr: (B * G, N, F).
        rows: T.
        chunks: N.
        k_batch: Stride of the features.
        k_head: Stride of the features.
        k_row: Stride of the features.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        v_row: Stride of the values.
        KV_HEADS: G.
        FEATURES: F.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Rows of a chunk.
        TILE: Features of a tile.
    """
    chunk, pair = tl.program_id(0), tl.program_id(2)
    batch, group = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    row, column = chunk * M + tl.arange(0, M), tl.arange(0, BLOCK_DIM)
    feature = tl.program_id(1) * TILE + tl.arange(0, TILE)
    k_at = k_ptr + batch * k_batch + group * k_head + row.to(tl.int64)[:, None] * k_row + feature[None, :]
    v_at = v_ptr + batch * v_batch + group * v_head + row.to(tl.int64)[:, None] * v_row + column[None, :]
    k = tl.load(k_at, mask=(row < rows)[:, None] & (feature < FEATURES)[None, :], other=0.0).to(tl.float32)
    v = tl.load(v_at, mask=(row < rows)[:, None] & (column < DIM)[None, :], other=0.0).to(tl.float32)
    sums = tl.dot(tl.trans(k), v, input_precision="tf32x3")
    place = (pair.to(tl.int64) * chunks + chunk) * FEATURES + feature
    mask = (feature < FEATURES)[:, None] & (column < DIM)[None, :]
    tl.store(sums_ptr + place[:, None] * DIM + column[None, :], sums, mask=mask)
    tl.store(norms_ptr + place, tl.sum(k, 0), mask=feature < FEATURES)


@triton.jit
def linear_rows_kernel(q_ptr, k_ptr, v_ptr, states_ptr, norms_ptr, sum_ptr, total_ptr, rows, chunks, q_batch, q_head,
                       q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, HEADS: tl.constexpr,
                       GROUP: tl.constexpr, FEATURES: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
                       M: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Attend from one chunk of one head; the grid is (N, B * H).

    Args:
        q_ptr: Features of queries.
        k_ptr: Features of keys.
        v_ptr: Values.
        states_ptr: (B * G, N + 1, F, D) states before each chunk.
        norms_ptr: (B * G, N + 1, F).
        sum_ptr: (B, H, T, D), contiguous.
        total_ptr: (B, H, T), contiguous.
        rows: T.
        chunks: N + 1.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        v_row: Stride of the values.
        HEADS: H.
        GROUP: J.
        FEATURES: F.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Rows of a chunk.
        TILE: Features of a tile.
    """
    chunk, pair = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    group = head // GROUP
    row, column = chunk * M + tl.arange(0, M), tl.arange(0, BLOCK_DIM)
    there, in_dim = (row < rows)[:, None], (column < DIM)[None, :]
    q_base = q_ptr + batch * q_batch + head * q_head + row.to(tl.int64)[:, None] * q_row
    k_base = k_ptr + batch * k_batch + group * k_head + row.to(tl.int64)[:, None] * k_row
    v_base = v_ptr + batch * v_batch + group * v_head + row.to(tl.int64)[:, None] * v_row
    before = ((batch * (HEADS // GROUP) + group) * chunks + chunk) * FEATURES
    weight, acc = tl.zeros([M, M], tl.float32), tl.zeros([M, BLOCK_DIM], tl.float32)
    total = tl.zeros([M], tl.float32)
    for tile in range(0, FEATURES, TILE):
        feature = tile + tl.arange(0, TILE)
        inside = (feature < FEATURES)[None, :]
        q = tl.load(q_base + feature[None, :], mask=there & inside, other=0.0).to(tl.float32)
        k = tl.load(k_base + feature[None, :], mask=there & inside, other=0.0).to(tl.float32)
        at = states_ptr + (before + feature)[:, None] * DIM + column[None, :]
        state = tl.load(at, mask=(feature < FEATURES)[:, None] & in_dim, other=0.0)
        norm = tl.load(norms_ptr + before + feature, mask=feature < FEATURES, other=0.0)
        weight = tl.dot(q, tl.trans(k), weight, input_precision="tf32x3")
        acc = tl.dot(q, state, acc, input_precision="tf32x3")
        total += tl.sum(q * norm[None, :], 1)
    weight = tl.where(row[:, None] >= row[None, :], weight, 0.0)
    v = tl.load(v_base + column[None, :], mask=there & in_dim, other=0.0).to(tl.float32)
    acc = tl.dot(weight, v, acc, input_precision="tf32x3")
    place = pair.to(tl.int64) * rows + row
    tl.store(sum_ptr + place[:, None] * DIM + column[None, :], acc, mask=there & in_dim)
    tl.store(total_ptr + place, total + tl.sum(weight, 1), mask=row < rows)


def linear_prefill(
    q_BHTF: torch.Tensor, k_BGTF: torch.Tensor, v_BGTD: torch.Tensor, state_BGFD: torch.Tensor, norm_BGF: torch.Tensor
) -> Linear:
    """Attend as the eager twin does, all chunks at once; a state of each chunk is held meanwhile.

    Args:
        q_BHTF: (B, H, T, F) features of queries; any strides, the last dim contiguous, as of all tensors with rows.
        k_BGTF: (B, G, T, F) features of keys.
        v_BGTD: (B, G, T, D) values.
        state_BGFD: (B, G, F, D) float32 state before the first row.
        norm_BGF: (B, G, F) float32 likewise.

    Returns:
        Sums and the state after the last row, float32.

    Raises:
        ValueError: If the last dim of a tensor is not contiguous.
    """
    check_contiguous_rows(q_BHTF, k_BGTF, v_BGTD)
    batch, heads, rows, features = q_BHTF.shape
    groups, dim = v_BGTD.shape[1], v_BGTD.shape[3]
    chunks, tiles = triton.cdiv(rows, CHUNK), triton.cdiv(features, FEATURES)
    new = torch.empty(batch, groups, chunks, features, dim, dtype=torch.float32, device=q_BHTF.device)
    new_norm = torch.empty(batch, groups, chunks, features, dtype=torch.float32, device=q_BHTF.device)
    shape = {"FEATURES": features, "DIM": dim, "BLOCK_DIM": max(16, power_of_2(dim)), "M": CHUNK, "TILE": FEATURES}
    chunk_sums_kernel[(chunks, tiles, batch * groups)](
        k_BGTF, v_BGTD, new, new_norm, rows, chunks, *k_BGTF.stride()[:3], *v_BGTD.stride()[:3], KV_HEADS=groups,
        **shape, num_warps=4,
    )  # fmt: skip
    states = torch.cat([state_BGFD.float()[:, :, None], new], 2).cumsum(2)
    norms = torch.cat([norm_BGF.float()[:, :, None], new_norm], 2).cumsum(2)
    sum_BHTD = torch.empty(batch, heads, rows, dim, dtype=torch.float32, device=q_BHTF.device)
    total_BHT = torch.empty(batch, heads, rows, dtype=torch.float32, device=q_BHTF.device)
    linear_rows_kernel[(chunks, batch * heads)](
        q_BHTF, k_BGTF, v_BGTD, states, norms, sum_BHTD, total_BHT, rows, chunks + 1, *q_BHTF.stride()[:3],
        *k_BGTF.stride()[:3], *v_BGTD.stride()[:3], HEADS=heads, GROUP=heads // groups, **shape, num_warps=4,
    )  # fmt: skip
    return Linear(sum_BHTD, total_BHT, states[:, :, -1], norms[:, :, -1])
