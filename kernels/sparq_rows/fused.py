"""SparQ's choice in passes over products of tiles: sums of each row, ranks, their border, and the weight inside.

Ranks of some rows are written; scores are nowhere stored, since a product of tiles costs less than memory.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), t of them at a
time, S key rows, X ranks of a row, D head dim, W words of 32 keys, M query rows of a tile, N keys of a tile.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ..chosen_prefill.eager import BITS
from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..grouped_rows.fused import load_keys
from ..interpreter import upcasts
from ..many_rows import Tiles, tiles_of
from ..tiling import power_of_2
from .border.fused import choose_bits_kernel
from .eager import Rows

TILES, INSIDE_TILES = Tiles(64, 128, 4, 3), Tiles(128, 64, 4, 3)
# Ranks held at one time (256 MB), those of a row looked at at once, and warps that do: one block an SM, whose row of
# 32768 ranks then stays in the first cache.
RANKS_AT_ONCE, PART, WARPS = 2**26, 4096, 16
# Rows of ranks are multiples of this, and so are rows at a time where many fit: odd ones would be kernels of their own.
LINE, ROWS = 128, 128


@triton.jit
def weight_sums_kernel(q_ptr, k_ptr, factor_ptr, first_ptr, lse_ptr, log2_e, new, rows, q_batch, q_head, q_row,
                       k_batch, k_head, k_row, HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
                       BLOCK_DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Sum the weights of one tile of query rows of one head; the grid is (tiles, B * H).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        factor_ptr: (B, H, T) factors.
        first_ptr: (B,) first row that is no padding.
        lse_ptr: (B, H, T) log2 of the sums, 0 where nothing is seen.
        log2_e: log2(e).
        new: T.
        rows: S.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        HEADS: H.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Query rows of a tile.
        N: Keys of a tile.
        UPCAST: Cast to float32 after each load.
    """
    pair, begin = tl.program_id(1), (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    batch, head, at = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64), begin + tl.arange(0, M)
    q_base, k_base = q_ptr + batch * q_batch + head * q_head, k_ptr + batch * k_batch + (head // GROUP) * k_head
    q = load_keys(q_base, begin, new, q_row, DIM, BLOCK_DIM, M, UPCAST)
    row, first, place = rows - new + at, tl.load(first_ptr + batch), pair.to(tl.int64) * new + at
    factor = tl.load(factor_ptr + place, mask=at < new, other=0.0) * log2_e
    end = rows - new + tl.minimum(begin + M, new)
    # Keys up to the tile's first row are seen by all of its rows.
    middle = first + tl.maximum(rows - new + begin + 1 - first, 0) // N * N
    top, total = tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    for key in range(first, middle, N):
        k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, N, UPCAST)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * factor[:, None]
        new_top = tl.maximum(top, tl.max(score, 1))
        total = total * tl.exp2(top - new_top) + tl.sum(tl.exp2(score - new_top[:, None]), 1)
        top = new_top
    for key in range(middle, end, N):
        k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, N, UPCAST)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * factor[:, None]
        score = tl.where((key + tl.arange(0, N))[None, :] <= row[:, None], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(score - base[:, None]), 1)
        top = new_top
    lse = top + tl.log2(tl.where(total == 0.0, 1.0, total))
    tl.store(lse_ptr + place, tl.where(total == 0.0, 0.0, lse), mask=at < new)


@triton.jit
def rank_tiles_kernel(q_ptr, k_ptr, factor_ptr, first_ptr, lse_ptr, rank_ptr, log2_e, begin, some, new, rows, line,
                      q_batch, q_head, q_row, k_batch, k_head, k_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
                      DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
                      UPCAST: tl.constexpr):  # fmt: skip
    """Rank one tile of keys for one tile of query rows of one KV head; the grid is (tiles, tiles of keys, B * G).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        factor_ptr: (B, H, T) factors.
        first_ptr: (B,) first row that is no padding.
        lse_ptr: (B, H, T) log2 of the sums of weights.
        rank_ptr: (B, G, t, X) sums of the weights over the group; tiles of which no row sees a key are left out.
        log2_e: log2(e).
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        line: X.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Query rows of a tile.
        N: Keys of a tile.
        UPCAST: Cast to float32 after each load.
    """
    pair, key = tl.program_id(2), tl.program_id(1) * N
    batch, group, at = (pair // KV_HEADS).to(tl.int64), pair % KV_HEADS, tl.program_id(0) * M + tl.arange(0, M)
    tile, first = begin + tl.program_id(0) * M, tl.load(first_ptr + batch)
    end = rows - new + begin + tl.minimum(tl.program_id(0) * M + M, some)
    if first + key < end:
        k_base = k_ptr + batch * k_batch + group.to(tl.int64) * k_head
        k = load_keys(k_base, first + key, end, k_row, DIM, BLOCK_DIM, N, UPCAST)
        rank = tl.zeros([M, N], tl.float32)
        for member in range(GROUP):
            q_base = q_ptr + batch * q_batch + (group * GROUP + member).to(tl.int64) * q_head
            q = load_keys(q_base, tile, begin + some, q_row, DIM, BLOCK_DIM, M, UPCAST)
            place = (pair.to(tl.int64) * GROUP + member) * new + begin + at
            factor = tl.load(factor_ptr + place, mask=at < some, other=0.0) * log2_e
            lse = tl.load(lse_ptr + place, mask=at < some, other=0.0)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * factor[:, None]
            rank += tl.exp2(score - lse[:, None])
        column = key + tl.arange(0, N)
        out = rank_ptr + (pair.to(tl.int64) * some + at)[:, None] * line + column[None, :]
        tl.store(out, rank, mask=(at < some)[:, None] & (column < line)[None, :])


@triton.jit
def weight_inside_kernel(q_ptr, k_ptr, factor_ptr, first_ptr, lse_ptr, bits_ptr, inside_ptr, log2_e, new, rows, words,
                         q_batch, q_head, q_row, k_batch, k_head, k_row, HEADS: tl.constexpr, GROUP: tl.constexpr,
                         DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
                         UPCAST: tl.constexpr):  # fmt: skip
    """Sum the weights of one tile of query rows of one head on the keys chosen; the grid is (tiles, B * H).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        factor_ptr: (B, H, T) factors.
        first_ptr: (B,) first row that is no padding.
        lse_ptr: (B, H, T) log2 of the sums of weights.
        bits_ptr: (B, G, T, W) words; no bit is set of a key that a row does not see.
        inside_ptr: (B, H, T) weights on the keys chosen.
        log2_e: log2(e).
        new: T.
        rows: S.
        words: W.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        HEADS: H.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Query rows of a tile.
        N: Keys of a tile, 32 or 64: more would take three words.
        UPCAST: Cast to float32 after each load.
    """
    pair, begin = tl.program_id(1), (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    batch, head, at = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64), begin + tl.arange(0, M)
    q_base, k_base = q_ptr + batch * q_batch + head * q_head, k_ptr + batch * k_batch + (head // GROUP) * k_head
    q = load_keys(q_base, begin, new, q_row, DIM, BLOCK_DIM, M, UPCAST)
    first, place, there = tl.load(first_ptr + batch), pair.to(tl.int64) * new + at, at < new
    factor = tl.load(factor_ptr + place, mask=there, other=0.0) * log2_e
    lse = tl.load(lse_ptr + place, mask=there, other=0.0)
    word_base = bits_ptr + ((pair // GROUP).to(tl.int64) * new + at) * words
    end, inside = rows - new + tl.minimum(begin + M, new), tl.zeros([M], tl.float32)
    for key in range(first, end, N):
        column = key - first + tl.arange(0, N)
        low = tl.zeros_like(at) + (key - first) // 32
        one = tl.load(word_base + low, mask=there & (low < words), other=0)
        two = tl.load(word_base + low + 1, mask=there & (low + 1 < words), other=0)
        word = tl.where((column // 32 == (key - first) // 32)[None, :], one[:, None], two[:, None])
        k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, N, UPCAST)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * factor[:, None]
        keep = ((word >> (column % 32)[None, :]) & 1) > 0
        inside += tl.sum(tl.where(keep, tl.exp2(score - lse[:, None]), 0.0), 1)
    tl.store(inside_ptr + place, inside, mask=there)


def sparq_rows(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    factor_BHT: torch.Tensor,
    budget_BT: torch.Tensor,
    local_BT: torch.Tensor,
    first_B: torch.Tensor,
) -> Rows:
    """Choose as the eager twin does; ranks of some rows at a time, 256 MB of them, are held.

    Args:
        q_BHTD: (B, H, T, D) queries; any strides, the last dim contiguous.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        factor_BHT: (B, H, T) float32.
        budget_BT: (B, T) int32.
        local_BT: (B, T) int32.
        first_B: (B,) int32.

    Returns:
        Bits of the keys chosen, and the weights on them.

    Raises:
        ValueError: If the last dim of a tensor is not contiguous.
    """
    check_contiguous_rows(q_BHTD, k_BGSD)
    (batch, heads, new, _), (groups, rows) = q_BHTD.shape, k_BGSD.shape[1:3]
    words, device, factor = -(-rows // BITS), q_BHTD.device, factor_BHT.float().contiguous()
    bits = torch.zeros(batch, groups, new, words, dtype=torch.int32, device=device)
    lse, inside = (torch.empty(batch, heads, new, dtype=torch.float32, device=device) for _ in range(2))
    strides = (*q_BHTD.stride()[:3], *k_BGSD.stride()[:3])
    sums, parts = (_shape(q_BHTD, groups, plan) for plan in (TILES, INSIDE_TILES))
    weight_sums_kernel[(triton.cdiv(new, sums["M"]), batch * heads)](
        q_BHTD, k_BGSD, factor, first_B, lse, LOG2_E, new, rows, *strides, HEADS=heads, **sums
    )
    each = (budget_BT.int().contiguous(), local_BT.int().contiguous(), first_B)
    _choose(q_BHTD, k_BGSD, factor, lse, each, bits, sums)
    weight_inside_kernel[(triton.cdiv(new, parts["M"]), batch * heads)](
        q_BHTD, k_BGSD, factor, first_B, lse, bits, inside, LOG2_E, new, rows, words, *strides, HEADS=heads, **parts
    )
    return Rows(bits, inside)


def _choose(
    q: torch.Tensor, k: torch.Tensor, factor: torch.Tensor, lse: torch.Tensor, each: tuple[torch.Tensor, ...],
    bits: torch.Tensor, shape: dict[str, Any],
) -> None:  # fmt: skip
    """Rank some rows, and set the bits of the best; `each` are budgets, local keys and first rows."""
    (batch, _, new, _), (groups, rows), (budget, local, first) = q.shape, k.shape[1:3], each
    step = RANKS_AT_ONCE // (batch * groups * (rows + LINE))
    step = min(new, step // ROWS * ROWS or max(1, step))
    rank = torch.empty(batch * groups * step * (rows + LINE), dtype=torch.float32, device=q.device)
    for begin in range(0, new, step):
        some = min(step, new - begin)
        width = rows - new + begin + some
        line = -(-width // LINE) * LINE
        rank_tiles_kernel[(triton.cdiv(some, shape["M"]), triton.cdiv(width, shape["N"]), batch * groups)](
            q, k, factor, first, lse, rank, LOG2_E, begin, some, new, rows, line, *q.stride()[:3], *k.stride()[:3],
            KV_HEADS=groups, **shape,
        )  # fmt: skip
        choose_bits_kernel[(some, batch * groups)](
            rank, budget, local, first, bits, begin, some, new, rows, line, bits.shape[3], KV_HEADS=groups, PART=PART,
            num_warps=WARPS,
        )  # fmt: skip


def _shape(q_BHTD: torch.Tensor, groups: int, plan: Tiles) -> dict[str, Any]:
    dim, plan = q_BHTD.shape[3], tiles_of(plan, q_BHTD.element_size(), q_BHTD.shape[3])
    return {
        "GROUP": q_BHTD.shape[1] // groups, "DIM": dim, "BLOCK_DIM": max(16, power_of_2(dim)), "M": plan.queries,
        "N": plan.keys, "UPCAST": upcasts(q_BHTD.dtype), "num_warps": plan.num_warps, "num_stages": plan.num_stages,
    }  # fmt: skip
