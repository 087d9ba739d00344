"""Causal linear attention in three steps: sums of each chunk, a running sum over chunks, then all rows at once.

Products are in three passes of tf32, nearly float32: features of a polynomial map differ by orders of magnitude.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T rows, F features, D head dim, N chunks of M rows.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..interpreter import storage_dtype
from ..tiling import power_of_2
from .eager import CHUNK, Linear
from .running.fused import running_sums, running_top

FEATURES = 32  # of a tile of sums
ROWS, TILE = 32, 16  # query rows of a block, features of a tile
ALIGNED = 16


@triton.jit
def chunk_sums_kernel(k_ptr, v_ptr, log_ptr, top_ptr, sums_ptr, norms_ptr, rows, chunks, k_batch, k_head, k_row,
                      v_batch, v_head, v_row, KV_HEADS: tl.constexpr, FEATURES: tl.constexpr, WIDE: tl.constexpr,
                      DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Sum one tile of features over one chunk, over the factor of its last row; the grid is (N, feature tiles, B * G).

    Args:
        k_ptr: Features of the rows that enter.
        v_ptr: Values.
        log_ptr: (B, G, T) logs of factors, contiguous.
        top_ptr: (B, G, T) largest log so far, contiguous.
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
        WIDE: What may be loaded of a row of features, at least F.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Rows of a chunk.
        TILE: Features of a tile.
    """
    chunk, pair = tl.program_id(0), tl.program_id(2).to(tl.int64)
    batch, group = pair // KV_HEADS, pair % KV_HEADS
    row, column = chunk * M + tl.arange(0, M), tl.arange(0, BLOCK_DIM)
    feature = tl.program_id(1) * TILE + tl.arange(0, TILE)
    log = tl.load(log_ptr + pair * rows + row, mask=row < rows, other=float("-inf"))
    enters = log > float("-inf")
    top = tl.load(top_ptr + pair * rows + tl.minimum(chunk * M + M, rows) - 1)
    factor = tl.where(enters, tl.exp(log - top), 0.0)
    k_at = k_ptr + batch * k_batch + group * k_head + row.to(tl.int64)[:, None] * k_row + feature[None, :]
    v_at = v_ptr + batch * v_batch + group * v_head + row.to(tl.int64)[:, None] * v_row + column[None, :]
    k = tl.load(k_at, mask=enters[:, None] & (feature < WIDE)[None, :], other=0.0).to(tl.float32)
    k = tl.where((feature < FEATURES)[None, :], k, 0.0)
    v = tl.load(v_at, mask=enters[:, None] & (column < DIM)[None, :], other=0.0).to(tl.float32)
    k = k * factor[:, None]
    sums = tl.dot(tl.trans(k), v, input_precision="tf32x3")
    place = (pair * chunks + chunk) * FEATURES + feature
    mask = (feature < FEATURES)[:, None] & (column < DIM)[None, :]
    tl.store(sums_ptr + place[:, None] * DIM + column[None, :], sums, mask=mask)
    tl.store(norms_ptr + place, tl.sum(k, 0), mask=feature < FEATURES)


@triton.jit
def linear_rows_kernel(q_ptr, q_log_ptr, k_ptr, v_ptr, log_ptr, top_ptr, scale_ptr, states_ptr, norms_ptr, exact_ptr,
                       exact_log_ptr, out_ptr, rows, chunks, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch,
                       v_head, v_row, HEADS: tl.constexpr, GROUP: tl.constexpr, FEATURES: tl.constexpr,
                       WIDE: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr,
                       ROWS: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Attend from some rows of one chunk of one head; the grid is (N * M / ROWS, B * H).

    Weights are used up before the state is read: of the two sums that grow over features, one is held at a time.

    Args:
        q_ptr: Features of queries.
        q_log_ptr: (B, H, T) logs of their factors, contiguous.
        k_ptr: Features of the rows that enter.
        v_ptr: Values.
        log_ptr: (B, G, T) logs of factors.
        top_ptr: (B, G, T) largest log so far.
        scale_ptr: (B, G) log of the factor of the state before the first row.
        states_ptr: (B * G, N, F, D) states before each chunk.
        norms_ptr: (B * G, N, F).
        exact_ptr: (B, H, T, D) means over exact rows, contiguous.
        exact_log_ptr: (B, H, T) logs of their sums, contiguous.
        out_ptr: (B, H, T, D), contiguous.
        rows: T.
        chunks: N.
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
        WIDE: What may be loaded of a row of features, at least F.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Rows of a chunk.
        ROWS: Query rows of a block.
        TILE: Features of a tile.
    """
    PARTS: tl.constexpr = M // ROWS
    chunk, part, pair = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS, tl.program_id(1).to(tl.int64)
    batch, head = pair // HEADS, pair % HEADS
    group = head // GROUP
    own = batch * (HEADS // GROUP) + group
    key, row = chunk * M + tl.arange(0, M), chunk * M + part * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_DIM)
    there, in_dim = (row < rows)[:, None], (column < DIM)[None, :]
    log = tl.load(log_ptr + own * rows + key, mask=key < rows, other=float("-inf"))
    top = tl.load(top_ptr + own * rows + row, mask=row < rows, other=float("inf"))
    enters = log > float("-inf")
    q_base = q_ptr + batch * q_batch + head * q_head + row.to(tl.int64)[:, None] * q_row
    k_base = k_ptr + batch * k_batch + group * k_head + key.to(tl.int64)[:, None] * k_row
    before = (own * chunks + chunk) * FEATURES
    weight = tl.zeros([ROWS, M], tl.float32)
    for tile in range(0, FEATURES, TILE):
        feature = tile + tl.arange(0, TILE)
        inside, loaded = (feature < FEATURES)[None, :], (feature < WIDE)[None, :]
        q = tl.load(q_base + feature[None, :], mask=there & loaded, other=0.0).to(tl.float32)
        k = tl.load(k_base + feature[None, :], mask=enters[:, None] & loaded, other=0.0).to(tl.float32)
        q, k = tl.where(inside, q, 0.0), tl.where(inside, k, 0.0)
        weight = tl.dot(q, tl.trans(k), weight, input_precision="tf32x3")
    seen = (row[:, None] >= key[None, :]) & enters[None, :]
    weight = tl.where(seen, weight * tl.exp(tl.where(seen, log[None, :] - top[:, None], 0.0)), 0.0)
    v_at = v_ptr + batch * v_batch + group * v_head + key.to(tl.int64)[:, None] * v_row + column[None, :]
    v = tl.load(v_at, mask=enters[:, None] & in_dim, other=0.0).to(tl.float32)
    acc, total = tl.dot(weight, v, input_precision="tf32x3"), tl.sum(weight, 1)
    scale = tl.load(scale_ptr + own)
    if chunk > 0:
        scale = tl.load(top_ptr + own * rows + chunk * M - 1)
    decay = tl.where(scale > float("-inf"), tl.exp(scale - top), 0.0)
    for tile in range(0, FEATURES, TILE):
        feature = tile + tl.arange(0, TILE)
        q = tl.load(q_base + feature[None, :], mask=there & (feature < WIDE)[None, :], other=0.0).to(tl.float32)
        q = tl.where((feature < FEATURES)[None, :], q, 0.0) * decay[:, None]
        at = states_ptr + (before + feature)[:, None] * DIM + column[None, :]
        state = tl.load(at, mask=(feature < FEATURES)[:, None] & in_dim, other=0.0)
        norm = tl.load(norms_ptr + before + feature, mask=feature < FEATURES, other=0.0)
        acc = tl.dot(q, state, acc, input_precision="tf32x3")
        total += tl.sum(q * norm[None, :], 1)
    some = total > 0.0
    safe = tl.where(some, total, 1.0)
    place = pair * rows + row
    log_q = tl.log(safe) + top + tl.load(q_log_ptr + place, mask=row < rows, other=0.0)
    exact_log = tl.load(exact_log_ptr + place, mask=row < rows, other=0.0)
    # Without an exact row this is 1, without a state 0: no infinity is subtracted from another.
    share = tl.where(some, 1.0 / (1.0 + tl.exp(exact_log - tl.where(some, log_q, 0.0))), 0.0)
    at = place[:, None] * DIM + column[None, :]
    exact = tl.load(exact_ptr + at, mask=there & in_dim, other=0.0).to(tl.float32)
    out = exact + share[:, None] * (acc / safe[:, None] - exact)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=there & in_dim)


def loaded_of(x_BNTF: torch.Tensor) -> int:
    """Say how much may be loaded of a row of features: whole vectors, where rows begin at multiples of 16 features.

    Args:
        x_BNTF: Features, the last dim contiguous.

    Returns:
        At least F: what lies behind a row, the last one too, is memory of the same tensor, whatever stands there.
    """
    features, strides = x_BNTF.shape[3], x_BNTF.stride()[:3]
    wide = -(-features // ALIGNED) * ALIGNED
    last = sum((size - 1) * stride for size, stride in zip(x_BNTF.shape, strides, strict=False))
    end = (x_BNTF.storage_offset() + last + wide) * x_BNTF.element_size()
    whole = all(stride % ALIGNED == 0 for stride in strides) and end <= x_BNTF.untyped_storage().nbytes()
    return wide if whole else features


def linear_prefill(
    q_BHTF: torch.Tensor,
    q_log_BHT: torch.Tensor,
    k_BGTF: torch.Tensor,
    v_BGTD: torch.Tensor,
    log_BGT: torch.Tensor,
    state_BGFD: torch.Tensor,
    norm_BGF: torch.Tensor,
    scale_BG: torch.Tensor,
    exact_BHTD: torch.Tensor,
    exact_log_BHT: torch.Tensor,
) -> Linear:
    """Attend as the eager twin does, all chunks at once; a state of each chunk is held meanwhile.

    Args:
        q_BHTF: (B, H, T, F) features of queries; any strides, the last dim contiguous, as of all tensors with rows.
        q_log_BHT: (B, H, T) float32 logs of their factors.
        k_BGTF: (B, G, T, F) features of the rows that enter.
        v_BGTD: (B, G, T, D) their values.
        log_BGT: (B, G, T) float32 logs of their factors; -inf where no row enters.
        state_BGFD: (B, G, F, D) float32 state before the first row.
        norm_BGF: (B, G, F) float32 likewise.
        scale_BG: (B, G) float32 log of the factor that both lack.
        exact_BHTD: (B, H, T, D) means over the exact rows.
        exact_log_BHT: (B, H, T) float32 logs of their sums of weights.

    Returns:
        Means, and the state after the last row, float32.

    Raises:
        ValueError: If the last dim of a tensor is not contiguous.
    """
    check_contiguous_rows(q_BHTF, k_BGTF, v_BGTD)
    batch, heads, rows, features = q_BHTF.shape
    groups, dim, device = v_BGTD.shape[1], v_BGTD.shape[3], q_BHTF.device
    chunks, tiles = triton.cdiv(rows, CHUNK), triton.cdiv(features, FEATURES)
    log, state, norm, scale = (part.float().contiguous() for part in (log_BGT, state_BGFD, norm_BGF, scale_BG))
    top, last_scale = running_top(log, scale)
    states = torch.empty(batch, groups, chunks, features, dim, dtype=torch.float32, device=device)
    norms = torch.empty(batch, groups, chunks, features, dtype=torch.float32, device=device)
    shape = {"FEATURES": features, "WIDE": min(loaded_of(q_BHTF), loaded_of(k_BGTF)), "DIM": dim, "M": CHUNK}
    block = max(16, power_of_2(dim))
    chunk_sums_kernel[(chunks, tiles, batch * groups)](
        k_BGTF, v_BGTD, log, top, states, norms, rows, chunks, *k_BGTF.stride()[:3], *v_BGTD.stride()[:3],
        KV_HEADS=groups, **shape, BLOCK_DIM=block, TILE=FEATURES, num_warps=4,
    )  # fmt: skip
    last, last_norm = running_sums((states, norms), (state, norm), scale, top)
    exact, out_dtype = exact_BHTD.contiguous(), storage_dtype(exact_BHTD.dtype)
    out_BHTD = torch.empty(batch, heads, rows, dim, dtype=out_dtype, device=device)
    linear_rows_kernel[(chunks * CHUNK // ROWS, batch * heads)](
        q_BHTF, q_log_BHT.float().contiguous(), k_BGTF, v_BGTD, log, top, scale, states, norms, exact,
        exact_log_BHT.float().contiguous(), out_BHTD, rows, chunks, *q_BHTF.stride()[:3], *k_BGTF.stride()[:3],
        *v_BGTD.stride()[:3], HEADS=heads, GROUP=heads // groups, **shape, BLOCK_DIM=block, ROWS=ROWS,
        TILE=TILE, num_warps=4,
    )  # fmt: skip
    return Linear(out_BHTD.to(exact_BHTD.dtype), last, last_norm, last_scale)
