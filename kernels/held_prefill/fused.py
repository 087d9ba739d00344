"""Attention of many rows to keys that leave one after the other: each key's last query row stands in for a mask.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), S key rows,
D head dim, M query rows of a tile, N keys of a tile.
"""

import math

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..grouped_rows.fused import load_keys
from ..interpreter import storage_dtype, upcasts
from ..many_rows import Tiles, tiles_of
from ..tiling import power_of_2
from .eager import Held

TILES = Tiles(64, 64, 4, 3)
LN_2 = tl.constexpr(math.log(2))
SCANNED = 1024  # keys looked at together for the first that is held


@triton.jit
def first_tiles_kernel(leave_ptr, begin_ptr, rows, M: tl.constexpr, N: tl.constexpr, SCANNED: tl.constexpr):
    """Find the first tile of keys after the sinks' that a tile of rows has a key of; the grid is (tiles, B * G).

    Args:
        leave_ptr: (B, G, S) first query row without each key, contiguous.
        begin_ptr: (B, G, tiles) written.
        rows: S.
        M: Query rows of a tile.
        N: Keys of a tile.
        SCANNED: Keys looked at together.
    """
    tile, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    none = tl.cdiv(rows, N) * N
    place, first = N, none
    while (place < rows) & (first == none):
        at = place + tl.arange(0, SCANNED)
        leave = tl.load(leave_ptr + pair * rows + at, mask=at < rows, other=0)
        first = tl.min(tl.where(leave > tile * M, at, none), 0)
        place += SCANNED
    tl.store(begin_ptr + pair * tl.num_programs(0) + tile, first // N)


@triton.jit
def attend_held_kernel(q_ptr, k_ptr, v_ptr, leave_ptr, begin_ptr, out_ptr, log_ptr, scale_log2, new, rows, q_batch,
                       q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, HEADS: tl.constexpr,
                       GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr,
                       N: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Attend from one tile of query rows of one head; the grid is (tiles, B * H).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        v_ptr: Values.
        leave_ptr: (B, G, S) first query row without each key, contiguous.
        begin_ptr: (B, G, tiles) first tile of keys, after that of the sinks, that some row of each tile of rows has.
        out_ptr: (B, H, T, D), contiguous.
        log_ptr: (B, H, T) logs of the sums of weights.
        scale_log2: Factor of the scores, times log2(e).
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
        HEADS: H.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Query rows of a tile.
        N: Keys of a tile.
        UPCAST: Cast to float32 after each load.
    """
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // HEADS, pair % HEADS
    group = head // GROUP
    begin = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    k_base, v_base = k_ptr + batch * k_batch + group * k_head, v_ptr + batch * v_batch + group * v_head
    leave_base = leave_ptr + (batch * (HEADS // GROUP) + group) * rows
    q = load_keys(q_ptr + batch * q_batch + head * q_head, begin, new, q_row, DIM, BLOCK_DIM, M, UPCAST)
    row = begin + tl.arange(0, M)
    end = rows - new + tl.minimum(begin + M, new)
    top, total = tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BLOCK_DIM], tl.float32)
    first = tl.load(begin_ptr + (batch * (HEADS // GROUP) + group) * tl.num_programs(0) + begin // M)
    for step in range(1 + tl.maximum(tl.cdiv(end, N) - first, 0)):
        key = tl.where(step == 0, 0, (first + step - 1) * N)  # sinks stay, the rows after them do not
        at = key + tl.arange(0, N)
        leave = tl.load(leave_base + at, mask=at < end, other=0)
        k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, N, UPCAST)
        v = load_keys(v_base, key, end, v_row, DIM, BLOCK_DIM, N, UPCAST)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        seen = (leave[None, :] > row[:, None]) & ((at - (rows - new))[None, :] <= row[:, None])
        score = tl.where(seen, score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay, weight = tl.exp2(top - base), tl.exp2(score - base[:, None])
        total = total * decay + tl.sum(weight, 1)
        acc = tl.dot(weight.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        top = new_top
    some = total > 0.0
    safe = tl.where(some, total, 1.0)
    column, place = tl.arange(0, BLOCK_DIM), pair * new + row
    mask = (row < new)[:, None] & (column < DIM)[None, :]
    tl.store(
        out_ptr + place[:, None] * DIM + column[None, :], (acc / safe[:, None]).to(out_ptr.dtype.element_ty), mask=mask
    )
    tl.store(log_ptr + place, tl.where(some, (top + tl.log2(safe)) * LN_2, float("-inf")), mask=row < new)


def held_prefill(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    leave_BGS: torch.Tensor,
    scale: float,
    plan: Tiles | None = None,
) -> Held:
    """Attend as the eager twin does, in memory that grows with T and S.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows; any strides, the last dim contiguous.
        k_BGSD: (B, G, S, D) keys; likewise.
        v_BGSD: (B, G, S, D) values; likewise.
        leave_BGS: (B, G, S) int32, the first query row that no longer has this key.
        scale: Factor of the scores.
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        Means in the dtype of the queries, and float32 logs of the sums of weights.

    Raises:
        ValueError: If the last dim of a tensor is not contiguous.
    """
    check_contiguous_rows(q_BHTD, k_BGSD, v_BGSD)
    batch, heads, new, dim = q_BHTD.shape
    groups, rows = k_BGSD.shape[1:3]
    plan, leave = plan or tiles_of(TILES, q_BHTD.element_size(), dim), leave_BGS.int().contiguous()
    out_BHTD = torch.empty(batch, heads, new, dim, dtype=storage_dtype(q_BHTD.dtype), device=q_BHTD.device)
    log_BHT = torch.empty(batch, heads, new, dtype=torch.float32, device=q_BHTD.device)
    attend_held_kernel[(triton.cdiv(new, plan.queries), batch * heads)](
        q_BHTD, k_BGSD, v_BGSD, leave, first_tiles(leave, new, plan), out_BHTD, log_BHT, scale * LOG2_E, new, rows,
        *q_BHTD.stride()[:3], *k_BGSD.stride()[:3], *v_BGSD.stride()[:3], HEADS=heads, GROUP=heads // groups, DIM=dim,
        BLOCK_DIM=max(16, power_of_2(dim)), M=plan.queries, N=plan.keys, UPCAST=upcasts(q_BHTD.dtype),
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    return Held(out_BHTD.to(q_BHTD.dtype), log_BHT)


def first_tiles(leave_BGS: torch.Tensor, new: int, plan: Tiles) -> torch.Tensor:
    """Find where each tile of query rows begins to read: tiles of keys before have left, as all but a window have.

    The first tile of keys is read in any case, since sinks stand there; where to go on is asked here.

    Args:
        leave_BGS: (B, G, S) int32, contiguous, the first query row that no longer has each key.
        new: T.
        plan: Sizes of the tiles.

    Returns:
        (B, G, tiles of rows) int32, numbers of tiles of keys, at least 1; as many as there are where no key is left.
    """
    batch, groups, rows = leave_BGS.shape
    tiles = triton.cdiv(new, plan.queries)
    begin = torch.empty(batch, groups, tiles, dtype=torch.int32, device=leave_BGS.device)
    first_tiles_kernel[(tiles, batch * groups)](
        leave_BGS, begin, rows, M=plan.queries, N=plan.keys, SCANNED=SCANNED, num_warps=4
    )
    return begin
