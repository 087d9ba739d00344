"""SparQ's choice in three passes over the scores of some rows, which are products of tiles, written before.

Ranks of the group by the weights of its heads, the search by a block of threads that holds a row of ranks in registers,
and the weights on what it chose.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), t of them at a
time, S key rows, X key rows that the last of those sees, D head dim, W words of 32 keys.
"""

import torch
import triton
import triton.language as tl

from ..chosen_prefill.eager import BITS
from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..kth_score.stored.fused import LEAST_ROWS, MOST_ROWS, SCORES_AT_ONCE, rank_some, search_row
from ..select_topk.search.fused import score_of
from ..tiling import power_of_2, select_plan
from .eager import Rows

PART = 2048  # keys of a row summed at once


@triton.jit
def rank_row_kernel(score_ptr, factor_ptr, local_ptr, first_ptr, lse_ptr, rank_ptr, begin, some, new, rows, width,
                    log2_e, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, JP: tl.constexpr,
                    PART: tl.constexpr):  # fmt: skip
    """Sum the weights of each head in one row of one KV head, and rank its keys by them; the grid is (t, B * G).

    Args:
        score_ptr: (B, H, t, X) products.
        factor_ptr: (B, H, T) factors.
        local_ptr: (B, T) last keys that come first.
        first_ptr: (B,) first row that is no padding.
        lse_ptr: (B, H, T) log2 of the sums of weights, written.
        rank_ptr: (B, G, t, X) log2 of the sums over the group, counted from the first key that is no padding; -inf
            for keys not seen.
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        width: X.
        log2_e: log2(e).
        KV_HEADS: G.
        GROUP: J.
        JP: J padded to a power of two.
        PART: Keys at once, a power of two.
    """
    at, pair, each = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.arange(0, JP)
    batch, there, part = pair // KV_HEADS, each < GROUP, tl.arange(0, PART)
    first, local = tl.load(first_ptr + batch), tl.load(local_ptr + batch * new + begin + at)
    own, member = rows - new + begin + at - first, pair * GROUP + each
    place, line = member * new + begin + at, score_ptr + (member * some + at) * width + first
    factor = tl.load(factor_ptr + place, mask=there, other=1.0) * log2_e
    top, total = tl.full([JP, PART], float("-inf"), tl.float32), tl.zeros([JP, PART], tl.float32)
    for key in range(0, own + 1, PART):
        mask = there[:, None] & (key + part <= own)[None, :]
        score = tl.load(line[:, None] + (key + part)[None, :], mask=mask, other=float("-inf")) * factor[:, None]
        new_top = tl.maximum(top, score)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp2(top - base) + tl.exp2(score - base)
        top = new_top
    largest = tl.max(top, 1)
    base = tl.where(largest == float("-inf"), 0.0, largest)
    whole = tl.sum(total * tl.exp2(top - base[:, None]), 1)
    lse = base + tl.log2(tl.where(whole == 0.0, 1.0, whole))
    tl.store(lse_ptr + place, lse, mask=there)
    for key in range(0, width, PART):
        row = key + part
        mask = there[:, None] & (row <= own)[None, :]
        score = tl.load(line[:, None] + row[None, :], mask=mask, other=float("-inf")) * factor[:, None]
        # Logs keep the order, and lie as the search guesses: sums of weights are far from normal.
        rank = tl.log2(tl.maximum(tl.sum(tl.exp2(score - lse[:, None]), 0), 1e-38))
        rank = tl.where(row <= own, tl.where(row > own - local, float("inf"), rank), float("-inf"))
        tl.store(rank_ptr + (pair * some + at) * width + row, rank, mask=row < width)


@triton.jit
def choose_bits_kernel(rank_ptr, budget_ptr, bits_ptr, begin, some, new, width, words, KV_HEADS: tl.constexpr,
                       BLOCK_ROWS: tl.constexpr):  # fmt: skip
    """Choose the keys of one row of one KV head; the grid is (t, B * G).

    Args:
        rank_ptr: (B, G, t, X) ranks.
        budget_ptr: (B, T) keys wanted.
        bits_ptr: (B, G, T, W) words.
        begin: First of the t query rows.
        some: t.
        new: T.
        width: X.
        words: W.
        KV_HEADS: G.
        BLOCK_ROWS: Power of two, at least X.
    """
    at, pair, row = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.arange(0, BLOCK_ROWS)
    rank = tl.load(rank_ptr + (pair * some + at) * width + row, mask=row < width, other=float("-inf"))
    k, lo, count = search_row(rank, tl.load(budget_ptr + (pair // KV_HEADS) * new + begin + at))
    border = tl.where(k > 0, score_of(lo), float("inf"))
    # Of equal ranks at the border the first are taken: those up to some key, found by halving.
    above = rank > border
    room, low, high = k - tl.sum(above.to(tl.int32), 0), k * 0 - 1, k * 0 + BLOCK_ROWS - 1
    while (count != k) & (low + 1 < high):
        middle = (low + high) // 2
        enough = tl.sum(((rank == border) & (row <= middle)).to(tl.int32), 0) >= room
        low, high = tl.where(enough, low, middle), tl.where(enough, middle, high)
    keep = (above | ((rank == border) & (row <= high))) & (row < k * BLOCK_ROWS)
    bit = tl.reshape(keep.to(tl.int32) << (row % 32), (BLOCK_ROWS // 32, 32))
    word = tl.arange(0, BLOCK_ROWS // 32)
    tl.store(bits_ptr + (pair * new + begin + at) * words + word, tl.sum(bit, 1), mask=word < words)


@triton.jit
def weight_inside_kernel(score_ptr, factor_ptr, lse_ptr, first_ptr, bits_ptr, inside_ptr, begin, some, new, rows,
                         width, words, log2_e, HEADS: tl.constexpr, GROUP: tl.constexpr,
                         PART: tl.constexpr):  # fmt: skip
    """Sum the weights of one row of one head on the keys chosen; the grid is (t, B * H).

    Args:
        score_ptr: (B, H, t, X) products.
        factor_ptr: (B, H, T) factors.
        lse_ptr: (B, H, T) log2 of the sums of weights.
        first_ptr: (B,) first row that is no padding.
        bits_ptr: (B, G, T, W) words.
        inside_ptr: (B, H, T) weights on the keys chosen.
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        width: X.
        words: W.
        log2_e: log2(e).
        HEADS: H.
        GROUP: J.
        PART: Keys at once, a power of two.
    """
    at, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first, place, line = tl.load(first_ptr + pair // HEADS), pair * new + begin + at, (pair * some + at) * width
    own, factor, lse = rows - new + begin + at - first, tl.load(factor_ptr + place) * log2_e, tl.load(lse_ptr + place)
    word_base = bits_ptr + ((pair // GROUP) * new + begin + at) * words
    inside = tl.zeros([PART], tl.float32)
    for key in range(0, own + 1, PART):
        row = key + tl.arange(0, PART)
        bit = tl.load(word_base + row // 32, mask=row <= own, other=0) >> (row % 32)
        mask = (row <= own) & ((bit & 1) > 0)
        score = tl.load(score_ptr + line + first + row, mask=mask, other=float("-inf"))
        inside += tl.exp2(score * factor - lse)
    tl.store(inside_ptr + place, tl.sum(inside, 0))


def sparq_rows(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    factor_BHT: torch.Tensor,
    budget_BT: torch.Tensor,
    local_BT: torch.Tensor,
    first_B: torch.Tensor,
) -> Rows:
    """Choose as the eager twin does; scores of some rows at a time, 256 MB of them, are held.

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
        ValueError: If there are more than 32768 keys, or the last dim of a tensor is not contiguous.
    """
    check_contiguous_rows(q_BHTD, k_BGSD)
    (batch, heads, new, _), (groups, rows) = q_BHTD.shape, k_BGSD.shape[1:3]
    if rows > MOST_ROWS:
        raise ValueError(f"expected at most {MOST_ROWS} keys, whose ranks a block of threads can hold, got {rows}")
    words = -(-rows // BITS)
    bits = torch.zeros(batch, groups, new, words, dtype=torch.int32, device=q_BHTD.device)
    inside = torch.empty(batch, heads, new, dtype=torch.float32, device=q_BHTD.device)
    step = max(1, min(new, SCORES_AT_ONCE // (batch * heads * rows)))
    score, rank = (
        torch.empty(batch * sets * step * rows, dtype=torch.float32, device=q_BHTD.device) for sets in (heads, groups)
    )
    factor, lse = factor_BHT.float().contiguous(), torch.empty_like(inside)
    budget, local, group = budget_BT.int().contiguous(), local_BT.int().contiguous(), heads // groups
    for begin in range(0, new, step):
        some = min(step, new - begin)
        width = rows - new + begin + some
        size, sets, block = (begin, some, new, rows, width), batch * groups, max(LEAST_ROWS, power_of_2(width))
        rank_some(q_BHTD, k_BGSD, first_B, score, 1.0, begin, some, heads)
        rank_row_kernel[(some, sets)](
            score, factor, local, first_B, lse, rank, *size, LOG2_E, KV_HEADS=groups, GROUP=group,
            JP=power_of_2(group), PART=max(32, PART // power_of_2(group)),
        )  # fmt: skip
        choose_bits_kernel[(some, sets)](
            rank, budget, bits, begin, some, new, width, words, KV_HEADS=groups,
            BLOCK_ROWS=block, num_warps=select_plan(block).num_warps,
        )  # fmt: skip
        weight_inside_kernel[(some, batch * heads)](
            score, factor, lse, first_B, bits, inside, *size, words, LOG2_E, HEADS=heads, GROUP=group, PART=PART
        )
    return Rows(bits, inside)
