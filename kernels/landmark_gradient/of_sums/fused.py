"""The gradient of landmark attention in two kernels, of which the first tells the second what it knows of each block.

A row's share of a block and its mean of dP there take reductions over the block. The kernel over queries makes them and
writes three numbers for each row and block: what is added to a score before it is a weight, the mean, and the gradient
of the landmark's logit. The kernel over keys then has nothing to reduce: its tiles lie with their keys along the rows,
weights go from one product to the next in registers, and the landmarks' keys are one small product by itself.

Only for texts that are neither packed nor padded. The numbers take T * S / C * 10 bytes a head, of so many heads at
once that they stay below a bound.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), S key rows,
D head dim, M query rows of a tile, N columns of a tile = NB blocks * PB columns, C rows of a block, X blocks of a text.
"""

import triton
import triton.language as tl

from ...landmark_attention.grouped.fused import block_softmax, load_tile, locate


@triton.jit
def query_sums_kernel(q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, bias_ptr, mean_ptr, land_ptr, scale,
                      scale_log2, first_pair, new, rows, blocks, q_batch, q_head, k_batch, k_head, v_batch, v_head,
                      g_batch, g_head, q_row: tl.constexpr, k_row: tl.constexpr, v_row: tl.constexpr,
                      g_row: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
                      BLOCK_DIM: tl.constexpr, M: tl.constexpr, NB: tl.constexpr, PB: tl.constexpr, C: tl.constexpr,
                      UPCAST: tl.constexpr):  # fmt: skip
    """Sum the gradient of one tile of query rows of one head, and note what it is of; the grid is (tiles, P * J).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        v_ptr: Values.
        grad_ptr: Gradients of the output.
        lse_ptr: (B, H, T) log2 of each row's sum of weights.
        delta_ptr: (B, H, T) output times gradient.
        dq_ptr: (B, H, T, D), contiguous.
        bias_ptr: (P, X, J, T) what a score is given before it is a weight, written.
        mean_ptr: (P, X, J, T) mean of dO V^T in the block, written.
        land_ptr: (P, X, J, T) gradient of the landmark's logit, written.
        scale: Factor of the scores.
        scale_log2: The same, times log2(e).
        first_pair: First of the heads that are gone through, of B * H.
        new: T.
        rows: S.
        blocks: X.
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
        UPCAST: Cast to float32 after each load.
    """
    local_pair = tl.program_id(1)
    pair = local_pair + first_pair
    batch, head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    begin = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    local, column = tl.arange(0, M), tl.arange(0, BLOCK_DIM)
    there, far = begin + local < new, begin.to(tl.int64)
    q = load_tile(q_ptr + batch * q_batch + head * q_head + far * q_row, local, q_row, column, there, 1, DIM, UPCAST)
    do = load_tile(
        grad_ptr + batch * g_batch + head * g_head + far * g_row, local, g_row, column, there, 1, DIM, UPCAST
    )
    k_base = k_ptr + batch * k_batch + (head // GROUP) * k_head
    v_base = v_ptr + batch * v_batch + (head // GROUP) * v_head
    place = pair.to(tl.int64) * new + begin + local
    lse = tl.load(lse_ptr + place, mask=there, other=float("inf"))
    delta = tl.load(delta_ptr + place, mask=there, other=0.0)
    # Of each KV head's blocks one after another, and within a block of its query heads, rows lie side by side.
    note = (local_pair // GROUP).to(tl.int64) * blocks * GROUP * new + (local_pair % GROUP) * new + begin + local
    row = rows - new + begin + local
    own = row // C
    dq = tl.zeros([M, BLOCK_DIM], tl.float32)
    ok, at = locate(NB, PB, C)
    in_tile, inside = tl.arange(0, NB), tl.arange(0, PB)[None, None, :]
    past = (rows - new + begin) // C // NB * NB
    for block in range(0, past, NB):
        far = tl.cast(block * C, tl.int64)
        k = load_tile(k_base + far * k_row, at, k_row, column, ok, (PB != C) | (DIM != BLOCK_DIM), DIM, UPCAST)
        v = load_tile(v_base + far * v_row, at, v_row, column, ok, (PB != C) | (DIM != BLOCK_DIM), DIM, UPCAST)
        score = tl.dot(q, tl.trans(k), input_precision="ieee")
        weight, total, top, landmark = block_softmax(score, scale_log2, M, NB, PB, C)
        product = tl.reshape(tl.dot(do, tl.trans(v), input_precision="ieee"), (M, NB, PB))
        mean = tl.sum(weight * product, 2) / total
        share = tl.exp2(landmark - lse[:, None])
        land = share * (mean - delta[:, None])
        grad = (weight * (share / total)[:, :, None]) * (product - mean[:, :, None])
        grad = tl.reshape(tl.where(inside == C - 1, land[:, :, None], grad), (M, NB * PB))
        dq = tl.dot(grad.to(k.dtype), k, dq, input_precision="ieee")
        noted = note[:, None] + (block + in_tile)[None, :].to(tl.int64) * (GROUP * new)
        tl.store(bias_ptr + noted, landmark - top - tl.log2(total) - lse[:, None], mask=there[:, None])
        tl.store(mean_ptr + noted, mean, mask=there[:, None])
        tl.store(land_ptr + noted, land.to(land_ptr.dtype.element_ty), mask=there[:, None])
    last = rows - new + tl.minimum(begin + M, new) - 1
    for block in range(past, last // C + 1, NB):
        tile_row = block * C
        far, here = tl.cast(tile_row, tl.int64), tl.minimum(at, last - tile_row)
        k = load_tile(k_base + far * k_row, here, k_row, column, ok, DIM != BLOCK_DIM, DIM, UPCAST)
        v = load_tile(v_base + far * v_row, here, v_row, column, ok, DIM != BLOCK_DIM, DIM, UPCAST)
        score = tl.dot(q, tl.trans(k), input_precision="ieee")
        _weight, total, top, landmark = block_softmax(score, scale_log2, M, NB, PB, C)
        number = (block + in_tile)[None, :]
        before, mine = (number < own[:, None]) & there[:, None], (number == own[:, None]) & there[:, None]
        bias = tl.where(before, landmark - top - tl.log2(total), 0.0) - lse[:, None]
        reached = tl.reshape((tile_row + at)[None, :] <= row[:, None], (M, NB, PB))
        seen = (before[:, :, None] | (mine[:, :, None] & reached)) & (inside < C - 1)
        logit = tl.reshape(score, (M, NB, PB)) * scale_log2 + bias[:, :, None]
        weight = tl.exp2(tl.where(seen, logit, float("-inf")))
        product = tl.reshape(tl.dot(do, tl.trans(v), input_precision="ieee"), (M, NB, PB))
        share = tl.where(before, tl.exp2(landmark - lse[:, None]), 0.0)
        some = tl.where(share > 0.0, share, 1.0)
        mean = tl.where(share > 0.0, tl.sum(weight * product, 2) / some, delta[:, None])
        land = share * (mean - delta[:, None])
        grad = tl.where(inside == C - 1, land[:, :, None], weight * (product - mean[:, :, None]))
        dq = tl.dot(tl.reshape(grad, (M, NB * PB)).to(k.dtype), k, dq, input_precision="ieee")
        noted = note[:, None] + number.to(tl.int64) * (GROUP * new)
        tl.store(bias_ptr + noted, bias, mask=before | mine)
        tl.store(mean_ptr + noted, mean, mask=before | mine)
        tl.store(land_ptr + noted, land.to(land_ptr.dtype.element_ty), mask=before | mine)
    tl.store(dq_ptr + place[:, None] * DIM + column[None, :], (dq * scale).to(dq_ptr.dtype.element_ty),
             mask=there[:, None] & (column < DIM)[None, :])  # fmt: skip


@triton.jit
def add_noted(k, v, q_tile, g_tile, bias_tile, mean_tile, dk, dv, scale_log2, query, key, at, end, local, column, apart,
              q_row: tl.constexpr, g_row: tl.constexpr, DIAGONAL: tl.constexpr, WHOLE: tl.constexpr,
              DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr, NB: tl.constexpr, PB: tl.constexpr,
              C: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Add what one tile of queries gives to the gradients of a tile of keys, by what was noted of its rows.

    Args:
        k: (N, D) keys.
        v: (N, D) values.
        q_tile: Pointer to the first query.
        g_tile: Pointer to the gradient of its output.
        bias_tile: Pointer to what its scores of the tile's first block are given.
        mean_tile: Pointer to its mean of dO V^T in that block.
        dk: (N, D) gradient of the keys so far.
        dv: (N, D) gradient of the values so far.
        scale_log2: Factor of the scores, times log2(e).
        query: Row of the first query.
        key: Row of the first key.
        at: (N,) rows of the keys, counted from the first.
        end: S.
        local: (M,) rows of the queries, counted from the first.
        column: (BLOCK_DIM,) dims.
        apart: Numbers noted between one block and the next.
        q_row: Stride of the queries' rows.
        g_row: Stride of the gradients' rows.
        DIAGONAL: Whether some of the keys come after some of the queries.
        WHOLE: Whether every row of the tile exists.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Queries of the tile.
        NB: Blocks of the tile.
        PB: Columns of a block.
        C: Rows of a block.
        UPCAST: Cast to float32 after each load.

    Returns:
        Both sums.
    """
    there = query + local < end
    # Rows that are none stand for the last one, whose weights then are zero.
    inner = local if WHOLE else tl.minimum(local, end - 1 - query)
    q = load_tile(q_tile, inner, q_row, column, there, DIM != BLOCK_DIM, DIM, UPCAST)
    do = load_tile(g_tile, inner, g_row, column, there, DIM != BLOCK_DIM, DIM, UPCAST)
    block = tl.arange(0, NB)
    noted = block[:, None].to(tl.int64) * apart + local[None, :]
    if DIAGONAL:  # of blocks that begin later, nothing was noted
        known = there[None, :] & (key + block[:, None] * C <= query + local[None, :])
        bias = tl.load(bias_tile + noted, mask=known, other=float("-inf"))
        mean = tl.load(mean_tile + noted, mask=known, other=0.0)
    elif WHOLE:
        bias, mean = tl.load(bias_tile + noted), tl.load(mean_tile + noted)
    else:
        bias = tl.load(bias_tile + noted, mask=there[None, :], other=float("-inf"))
        mean = tl.load(mean_tile + noted, mask=there[None, :], other=0.0)
    score = tl.reshape(tl.dot(k, tl.trans(q), input_precision="ieee"), (NB, PB, M))
    weight = tl.exp2(score * scale_log2 + bias[:, None, :])
    if DIAGONAL:
        seen = (key + at)[:, None] <= (query + local)[None, :]
        weight = tl.where(tl.reshape(seen, (NB, PB, M)), weight, 0.0)
    dv = tl.dot(tl.reshape(weight, (NB * PB, M)).to(do.dtype), do, dv, input_precision="ieee")
    product = tl.reshape(tl.dot(v, tl.trans(do), input_precision="ieee"), (NB, PB, M))
    grad = tl.reshape(weight * (product - mean[:, None, :]), (NB * PB, M))
    dk = tl.dot(grad.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def key_sums_kernel(q_ptr, k_ptr, v_ptr, grad_ptr, bias_ptr, mean_ptr, dk_ptr, dv_ptr, scale, scale_log2, first_pair,
                    new, rows, blocks, q_batch, q_head, k_batch, k_head, v_batch, v_head, g_batch, g_head,
                    q_row: tl.constexpr, k_row: tl.constexpr, v_row: tl.constexpr, g_row: tl.constexpr,
                    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
                    M: tl.constexpr, NB: tl.constexpr, PB: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr,
                    WHOLE: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Sum the gradients of NB blocks or of a part of one, but those of landmarks' keys; the grid is (ranges, P).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        v_ptr: Values.
        grad_ptr: Gradients of the output.
        bias_ptr: (P, X, J, T) what a score is given before it is a weight.
        mean_ptr: (P, X, J, T) mean of dO V^T in the block.
        dk_ptr: (B, G, S, D), contiguous, written but for landmarks.
        dv_ptr: (B, G, S, D), contiguous, written; zeros for landmarks.
        scale: Factor of the scores.
        scale_log2: The same, times log2(e).
        first_pair: First of the pairs that are gone through, of B * G.
        new: T.
        rows: S.
        blocks: X.
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
        M: Queries of a tile.
        NB: Blocks of a tile.
        PB: Columns of a block, or of the part of one.
        C: Rows of a block.
        PARTS: Parts that a block is cut into.
        WHOLE: Whether every tile of queries that no key of a range comes after is whole.
        UPCAST: Cast to float32 after each load.
    """
    local_pair, begin = tl.program_id(1), tl.program_id(0) // PARTS * (NB * C)
    pair = local_pair + first_pair
    batch, group = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    local, column = tl.arange(0, M), tl.arange(0, BLOCK_DIM)
    offset, span = tl.program_id(0) % PARTS * PB, NB * C if PARTS == 1 else PB
    ok, at = locate(NB, PB, C)
    if PARTS > 1:
        at += offset
        ok = at < C
    far, here = tl.cast(begin, tl.int64), tl.minimum(at, rows - 1 - begin)
    k_tile = k_ptr + batch * k_batch + group * k_head + far * k_row
    v_tile = v_ptr + batch * v_batch + group * v_head + far * v_row
    k = load_tile(k_tile, here, k_row, column, ok, DIM != BLOCK_DIM, DIM, UPCAST)
    v = load_tile(v_tile, here, v_row, column, ok, DIM != BLOCK_DIM, DIM, UPCAST)
    dk, dv = tl.zeros([NB * PB, BLOCK_DIM], tl.float32), tl.zeros([NB * PB, BLOCK_DIM], tl.float32)
    near = tl.maximum(begin + offset, rows - new)
    mixed = near + tl.cdiv(tl.maximum(tl.minimum(begin + offset + span, rows) - near, 0), M) * M
    apart = GROUP * new
    for member in range(GROUP):
        head = group * GROUP + member
        # Rows are counted from the tensor's begin, queries from the first of them.
        q_base = q_ptr + batch * q_batch + head * q_head - tl.cast(rows - new, tl.int64) * q_row
        g_base = grad_ptr + batch * g_batch + head * g_head - tl.cast(rows - new, tl.int64) * g_row
        note = (local_pair.to(tl.int64) * blocks + begin // C) * apart + member * new - (rows - new)
        for query in tl.range(near, tl.minimum(mixed, rows), M, num_stages=1):
            far = tl.cast(query, tl.int64)
            dk, dv = add_noted(k, v, q_base + far * q_row, g_base + far * g_row, bias_ptr + note + query,
                               mean_ptr + note + query, dk, dv, scale_log2, query, begin, at, rows, local, column,
                               apart, q_row, g_row, 1, 0, DIM, BLOCK_DIM, M, NB, PB, C, UPCAST)  # fmt: skip
        for query in range(mixed, rows, M):
            far = tl.cast(query, tl.int64)
            dk, dv = add_noted(k, v, q_base + far * q_row, g_base + far * g_row, bias_ptr + note + query,
                               mean_ptr + note + query, dk, dv, scale_log2, query, begin, at, rows, local, column,
                               apart, q_row, g_row, 0, WHOLE, DIM, BLOCK_DIM, M, NB, PB, C, UPCAST)  # fmt: skip
    far, place = (pair.to(tl.int64) * rows + begin) * DIM, at[:, None] * DIM + column[None, :]
    mask = (ok & (begin + at < rows))[:, None] & (column < DIM)[None, :]
    regular = (at % C < C - 1)[:, None]  # a landmark's weights here are of no use: they may be infinite
    tl.store(dk_ptr + far + place, (dk * scale).to(dk_ptr.dtype.element_ty), mask=mask & regular)
    tl.store(dv_ptr + far + place, tl.where(regular, dv, 0.0).to(dv_ptr.dtype.element_ty), mask=mask)
