"""Attention to retrieved blocks: rows that share their blocks are the rows of one product, whichever way they share.

Blocks are read where they lie: for each token and head, a row by itself; for each token, the heads of a group; for each
head, a tile of tokens. Nothing of size T * K * C * D is stored.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows, S key rows, N closed blocks, C regular rows
of a block, PC = C padded to a power of two, K blocks retrieved, D head dim, X = H or 1, Y = T or 1, L lines of a tile.
"""

import math

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..interpreter import storage_dtype, upcasts
from ..many_rows import Tiles
from ..tiling import power_of_2
from .eager import check_index

SMALL = 4096  # elements of a block's keys that one warp holds without spilling


@triton.jit
def attend_blocks_kernel(q_ptr, k_ptr, v_ptr, mark_ptr, index_ptr, begin_ptr, out_ptr, lse_ptr, scale_log2, rows, slots,
                         q_batch, q_head, q_row, q_slot, k_batch, k_head, k_row, v_batch, v_head, v_row, m_batch,
                         m_head, m_row, i_batch, i_head, i_row, HEADS: tl.constexpr, GROUP: tl.constexpr,
                         DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, C: tl.constexpr, PC: tl.constexpr,
                         LINES: tl.constexpr, TOKENS: tl.constexpr, MEMBERS: tl.constexpr,
                         UPCAST: tl.constexpr):  # fmt: skip
    """Attend from the lines that share one index; the grid is (token tiles, H / MEMBERS, B).

    Args:
        q_ptr: Queries of each slot.
        k_ptr: Keys.
        v_ptr: Values.
        mark_ptr: Keys of the landmarks.
        index_ptr: Blocks; stride 1 along the slots.
        begin_ptr: (B,) row at which block 0 begins.
        out_ptr: (B, H, T, D), contiguous.
        lse_ptr: (B, H, T) log2 of the sums of the landmarks' weights, contiguous.
        scale_log2: Factor of the scores, times log2(e).
        rows: T.
        slots: K; another number of blocks needs no other kernel.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        q_slot: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        v_row: Stride of the values.
        m_batch: Stride of the landmarks.
        m_head: Stride of the landmarks.
        m_row: Stride of the landmarks.
        i_batch: Stride of the index.
        i_head: Stride of the index, 0 if all heads share it.
        i_row: Stride of the index, 0 if all rows share it.
        HEADS: H.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        C: Regular rows of a block.
        PC: Power of two, at least 16 and C.
        LINES: L, at least 16 and TOKENS * MEMBERS.
        TOKENS: Tokens of a tile that share an index.
        MEMBERS: Heads of a tile that share an index, all of one KV head.
        UPCAST: Cast to float32 after each load.
    """
    first_token, lead, batch = tl.program_id(0) * TOKENS, tl.program_id(1) * MEMBERS, tl.program_id(2).to(tl.int64)
    line, column, place = tl.arange(0, LINES), tl.arange(0, BLOCK_DIM), tl.arange(0, PC)
    token, head = first_token + line // MEMBERS, lead + line % MEMBERS
    there = (line < TOKENS * MEMBERS) & (token < rows)
    in_dim = column < DIM
    q_base = q_ptr + batch * q_batch + head.to(tl.int64)[:, None] * q_head + token.to(tl.int64)[:, None] * q_row
    group, begin = (lead // GROUP).to(tl.int64), tl.load(begin_ptr + batch).to(tl.int64)
    k_base = k_ptr + batch * k_batch + group * k_head + place[:, None] * k_row + column[None, :]
    v_base = v_ptr + batch * v_batch + group * v_head + place[:, None] * v_row + column[None, :]
    mark_base = mark_ptr + batch * m_batch + group * m_head + column
    index_base = index_ptr + batch * i_batch + lead.to(tl.int64) * i_head + first_token.to(tl.int64) * i_row
    top, total = tl.full([LINES], float("-inf"), tl.float32), tl.zeros([LINES], tl.float32)
    acc = tl.zeros([LINES, BLOCK_DIM], tl.float32)
    for slot in range(slots):
        block = tl.load(index_base + slot).to(tl.int64)
        some, row = block >= 0, begin + block * C
        q = tl.load(q_base + slot * q_slot + column[None, :], mask=there[:, None] & in_dim[None, :], other=0.0)
        here = (place < tl.where(some, C, 0))[:, None] & in_dim[None, :]
        k = tl.load(k_base + row * k_row, mask=here, other=0.0)
        v = tl.load(v_base + row * v_row, mask=here, other=0.0)
        mark = tl.load(mark_base + block * m_row, mask=column < tl.where(some, DIM, 0), other=0.0).to(tl.float32)
        if UPCAST:
            q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
        landmark = tl.sum(q.to(tl.float32) * mark[None, :], 1) * scale_log2
        landmark = tl.where(some, landmark, float("-inf"))
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        score = tl.where((place < C)[None, :], score, float("-inf"))
        weight = tl.exp2(score - tl.max(score, 1)[:, None])
        new_top = tl.maximum(top, landmark)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        share, decay = tl.exp2(landmark - base), tl.exp2(top - base)
        weight = weight * (share / tl.sum(weight, 1))[:, None]
        total = total * decay + share
        acc = tl.dot(weight.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        top = new_top
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    at = (batch * HEADS + head) * rows + token
    shown = there[:, None] & in_dim[None, :]
    tl.store(out_ptr + at[:, None] * DIM + column[None, :], out.to(out_ptr.dtype.element_ty), mask=shown)
    lse = tl.where(total == 0.0, float("-inf"), top + tl.log2(tl.where(total == 0.0, 1.0, total)))
    tl.store(lse_ptr + at, lse, mask=there)


def plan_of(elements: int, item_bytes: int, *, alone: bool) -> Tiles:
    """Choose how to cut the work: a row by itself has little to do for each block, and many warps would wait.

    Args:
        elements: Of a padded block's keys.
        item_bytes: Bytes of one of them.
        alone: Whether no other row shares a row's blocks. Rows that do were not timed with fewer warps.

    Returns:
        The tiles, of which `queries` are lines where tokens share their blocks.
    """
    if item_bytes > 2:  # products on the CUDA cores
        return Tiles(16, 0, 4, 2)
    if not alone:
        return Tiles(64, 0, 4, 2)
    return Tiles(16, 0, 1, 2) if elements <= SMALL else Tiles(16, 0, 2, 1)


def landmark_retrieve(
    q_BHTKD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    mark_BGND: torch.Tensor,
    index_BXYK: torch.Tensor,
    begin_B: torch.Tensor,
    block: int,
    scale: float,
    plan: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend as the eager twin does, reading blocks where they lie.

    Args:
        q_BHTKD: (B, H, T, K, D) queries, one for each slot; any strides, the last dim contiguous.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        v_BGSD: (B, G, S, D) values; any strides, the last dim contiguous.
        mark_BGND: (B, G, N, D) keys of the landmarks; any strides, the last dim contiguous.
        index_BXYK: (B, X, Y, K) int32 blocks; negative: none.
        begin_B: (B,) row at which block 0 begins.
        block: C.
        scale: Factor of the scores.
        plan: How to cut the work, of which `queries` are lines where blocks are chosen by head; chosen from the shape
            if absent.

    Returns:
        (B, H, T, D) in the dtype of the queries, and (B, H, T) float32 log of the sum of the landmarks' weights.

    Raises:
        ValueError: If the index is for other heads or rows, the block is empty, or the last dim of a tensor is not
            contiguous.
    """
    check_index(q_BHTKD, index_BXYK, block)
    check_contiguous_rows(q_BHTKD, k_BGSD, v_BGSD, mark_BGND)
    batch, heads, rows, slots, dim = q_BHTKD.shape
    group = heads // k_BGSD.shape[1]
    index = index_BXYK.to(torch.int32).contiguous()
    members = group if index.shape[1] == 1 else 1
    together = index.shape[2] == 1
    alone = not together and members == 1
    plan = plan or plan_of(power_of_2(block) * power_of_2(dim), q_BHTKD.element_size(), alone=alone)
    tokens = max(1, plan.queries // power_of_2(members)) if together else 1
    out_BHTD = torch.empty(batch, heads, rows, dim, dtype=storage_dtype(q_BHTKD.dtype), device=q_BHTKD.device)
    lse_BHT = torch.empty(batch, heads, rows, dtype=torch.float32, device=q_BHTKD.device)
    strides = [stride if size > 1 else 0 for size, stride in zip(index.shape[1:3], index.stride()[1:3], strict=True)]
    attend_blocks_kernel[(triton.cdiv(rows, tokens), heads // members, batch)](
        q_BHTKD, k_BGSD, v_BGSD, mark_BGND, index, begin_B.to(torch.int32), out_BHTD, lse_BHT, scale * LOG2_E, rows,
        slots, *q_BHTKD.stride()[:4], *k_BGSD.stride()[:3], *v_BGSD.stride()[:3], *mark_BGND.stride()[:3],
        index.stride(0), *strides, HEADS=heads, GROUP=group, DIM=dim, BLOCK_DIM=max(16, power_of_2(dim)), C=block,
        PC=max(16, power_of_2(block)), LINES=max(16, power_of_2(tokens * members)), TOKENS=tokens, MEMBERS=members,
        UPCAST=upcasts(q_BHTKD.dtype), num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    return out_BHTD.to(q_BHTKD.dtype), lse_BHT * math.log(2)
