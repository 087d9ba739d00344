"""Scores at the border of the k best: those of some query rows at a time are written, then searched row by row.

A row of scores that fits into the registers of one block of threads is read once, a longer one for each step of the
search. Scores computed anew for each step cost several times attention.

Shape legend: B batch, H query heads, G KV heads, J = H / G, N = G or H sets, T query rows (the last T of the S key
rows), t of them at a time, S key rows, W key rows that the last of those sees, R dims of the scores, M tokens of a
tile, JP = J padded to a power of two.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ...grouped_rows.fused import load_keys, load_lines, place_of_rows, ranks_of
from ...interpreter import upcasts
from ...many_rows import Tiles, tiles_of
from ...select_topk.search.fused import between, first_guesses, middle_of, next_guesses, ordered_key, score_of, shrink
from ...tiling import power_of_2, select_plan
from ..passes.fused import long_border_kernel

LINES = Tiles(128, 128, 8, 2)
# Rows of scores that fit into registers, scores held at one time (256 MB), and tiles of keys for each block of threads.
MOST_ROWS, SCORES_AT_ONCE, TILES_EACH = 32768, 2**26, 8
PART, WARPS = 8192, 16  # scores of a longer row that are looked at at once
# Shorter blocks would be kernels of their own, and each is compiled when it is first met.
LEAST_ROWS = 1024


@triton.jit
def rank_rows_kernel(q_ptr, k_ptr, first_ptr, wanted_ptr, rank_ptr, scale, begin, some, new, rows, q_batch, q_head,
                     q_row, k_batch, k_head, k_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
                     BLOCK_DIM: tl.constexpr, M: tl.constexpr, JP: tl.constexpr, N: tl.constexpr,
                     SHARED: tl.constexpr, TILES: tl.constexpr, ASKED: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Rank some keys for one tile of tokens of one KV head; the grid is (tiles of tokens, ranges of keys, B * G).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        first_ptr: (B,) first row that is no padding.
        wanted_ptr: (B, N, T) rows wanted, negative where ranks are not asked for; not read if ASKED is 0.
        rank_ptr: (B, N, t, W) float32, contiguous; -inf where a row does not see a key; tiles of tokens of which none
            is asked for are left out.
        scale: Factor of the scores.
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: R.
        BLOCK_DIM: Power of two, at least 16 and R.
        M: Tokens of a tile.
        JP: Lines of a token.
        N: Keys of a tile.
        SHARED: Whether the group ranks together.
        TILES: Tiles of keys of a range.
        ASKED: Whether some tokens may not be asked for.
        UPCAST: Cast to float32 after each load.
    """
    pair, tile = tl.program_id(2), tl.program_id(0) * M
    batch, group = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    q_base = q_ptr + batch * q_batch + group * GROUP * q_head
    q = load_lines(q_base, begin + tile, begin + some, q_head, q_row, DIM, BLOCK_DIM, M, JP, GROUP, UPCAST)
    k_base, first = k_ptr + batch * k_batch + group * k_head, tl.load(first_ptr + batch)
    place, there, token = place_of_rows(pair, tile, some, GROUP, M, JP, SHARED)
    row, width = rows - new + begin + token, rows - new + begin + some
    low = tl.program_id(1) * (TILES * N)
    end = tl.minimum(low + TILES * N, width)
    if ASKED:
        own, own_there, _token = place_of_rows(pair, begin + tile, new, GROUP, M, JP, SHARED)
        most = tl.max(tl.load(wanted_ptr + own, mask=own_there, other=-1), 0)
        end = tl.where(most < 0, low, end)
    for key in range(low, end, N):
        k = load_keys(k_base, key, width, k_row, DIM, BLOCK_DIM, N, UPCAST)
        rank = ranks_of(tl.dot(q, tl.trans(k), input_precision="ieee") * scale, GROUP, M, JP, N, SHARED)
        at = key + tl.arange(0, N)
        seen = (at[None, :] <= row[:, None]) & (at >= first)[None, :]
        mask = there[:, None] & (at < width)[None, :]
        out = rank_ptr + place[:, None] * width + at[None, :]
        tl.store(out, tl.where(seen, rank, float("-inf")), mask=mask)


@triton.jit
def search_row(score, wanted):
    """Search one row of scores for the border of the best.

    Args:
        score: (W,) scores; -inf is never taken, +inf in any case.
        wanted: How many are.

    Returns:
        How many there are of those wanted; the key of the border (`score_of` turns it into a score); how many scores
        reach it: more than wanted only if they are equal.
    """
    usable = score > float("-inf")
    able = tl.sum(usable.to(tl.int32), 0)
    # Rows that are taken in any case stand at +inf, and say nothing of the others.
    finite = usable & (score < float("inf"))
    seen, many = tl.where(finite, score, 0.0), tl.maximum(tl.sum(finite.to(tl.int32), 0), 1)
    mean = tl.sum(seen, 0) / many
    deviation = tl.sqrt(tl.maximum(tl.sum(seen * seen, 0) / many - mean * mean, 0.0))
    k = tl.maximum(tl.minimum(wanted, able), 0)
    # lo always keeps at least k keys and hi always keeps fewer.
    lo = ordered_key(tl.min(tl.where(usable, score, float("inf")), 0))
    hi = ordered_key(tl.max(score, 0)) + 1
    lo_count, hi_count = able, able * 0
    middle = middle_of(lo, hi)
    low_guess, high_guess = first_guesses(mean, deviation, many, tl.maximum(k - (able - many), 1))
    one, two = between(low_guess, lo, hi, middle), between(high_guess, lo, hi, middle)
    while (k > 0) & (lo_count != k) & (lo + 1 < hi):
        # Both counts share one sum: 16 bits each.
        at_one, at_two = score >= score_of(one), score >= score_of(two)
        counts = tl.sum(at_one.to(tl.int32) + (at_two.to(tl.int32) << 16), 0)
        field = lo_count - hi_count
        lo, lo_count, hi, hi_count = shrink(lo, lo_count, hi, hi_count, one, counts & 0xFFFF, two, counts >> 16, k)
        one, two = next_guesses(lo, hi, lo_count, hi_count, k, (lo_count - hi_count) * 4 > field)
    return k, lo, lo_count


@triton.jit
def row_border_kernel(rank_ptr, budget_ptr, kth_ptr, next_ptr, begin, some, new, width, BLOCK_ROWS: tl.constexpr):
    """Search for the border of one row of ranks; the grid is (t, B * N).

    Args:
        rank_ptr: (B, N, t, W) ranks.
        budget_ptr: (B, N, T) rows wanted; of a row with a negative number no rank is read.
        kth_ptr: (B, N, T) k-th largest scores.
        next_ptr: (B, N, T) those after them.
        begin: First of the t query rows.
        some: t.
        new: T.
        width: W.
        BLOCK_ROWS: Power of two, at least W.
    """
    at, sets = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = tl.arange(0, BLOCK_ROWS)
    place = sets * new + begin + at
    wanted = tl.load(budget_ptr + place)
    mask = row < tl.where(wanted < 0, 0, width)
    score = tl.load(rank_ptr + (sets * some + at) * width + row, mask=mask, other=float("-inf"))
    k, lo, lo_count = search_row(score, wanted)
    usable = score > float("-inf")
    border = tl.where(k > 0, score_of(lo), float("inf"))
    kept = (score >= border) & usable
    smallest = tl.min(tl.where(kept, score, float("inf")), 0)
    largest = tl.max(tl.where(kept, float("-inf"), score), 0)
    tied = (k > 0) & (lo_count != k)
    tl.store(kth_ptr + place, tl.where(tied, border, smallest))
    tl.store(next_ptr + place, tl.where(tied, border, largest))


def border_of_stored(
    q_BHTR: torch.Tensor,
    k_BGSR: torch.Tensor,
    k_BNT: torch.Tensor,
    first_B: torch.Tensor,
    scale: float,
    plan: Tiles | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the border as `kth_score` does.

    Args:
        q_BHTR: (B, H, T, R) queries.
        k_BGSR: (B, G, S, R) keys.
        k_BNT: (B, N, T) int32, contiguous; N tells whether the query heads of a KV head rank together.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the scores.
        plan: How to cut the products, `queries` being lines; chosen from the shape if absent.

    Returns:
        Two (B, N, T) float32: the k-th largest score, and the next.
    """
    new, rows = q_BHTR.shape[2], k_BGSR.shape[2]
    kth_BNT, next_BNT = (torch.empty(k_BNT.shape, dtype=torch.float32, device=q_BHTR.device) for _ in range(2))
    sets = k_BNT.shape[0] * k_BNT.shape[1]
    step = max(1, min(new, SCORES_AT_ONCE // (sets * rows)))
    rank = torch.empty(sets * step * rows, dtype=torch.float32, device=q_BHTR.device)
    for begin in range(0, new, step):
        some = min(step, new - begin)
        rank_some(q_BHTR, k_BGSR, first_B, rank, scale, begin, some, k_BNT.shape[1], plan, k_BNT)
        _search(rank, k_BNT, kth_BNT, next_BNT, begin, some, rows - new + begin + some)
    return kth_BNT, next_BNT


def border_of_ranks(rank_BNTS: torch.Tensor, k_BNT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the border of ranks that exist already; -inf and NaN are never kept.

    Args:
        rank_BNTS: (B, N, T, S) float32.
        k_BNT: (B, N, T) integers, how many of each row are kept.

    Returns:
        Two (B, N, T) float32: the k-th largest, and the next.
    """
    kth_BNT, next_BNT = (torch.empty(k_BNT.shape, dtype=torch.float32, device=k_BNT.device) for _ in range(2))
    new, rows = rank_BNTS.shape[2:]
    _search(rank_BNTS.contiguous(), k_BNT.to(torch.int32).contiguous(), kth_BNT, next_BNT, 0, new, rows)
    return kth_BNT, next_BNT


def _search(
    rank: torch.Tensor, k_BNT: torch.Tensor, kth: torch.Tensor, after: torch.Tensor, begin: int, some: int, width: int
) -> None:
    (batch, sets, new), block = k_BNT.shape, max(LEAST_ROWS, power_of_2(width))
    if width > MOST_ROWS:
        long_border_kernel[(some, batch * sets)](
            rank, k_BNT, kth, after, begin, some, new, width, PART=PART, num_warps=WARPS
        )
        return
    row_border_kernel[(some, batch * sets)](
        rank, k_BNT, kth, after, begin, some, new, width, BLOCK_ROWS=block, num_warps=select_plan(block).num_warps,
    )  # fmt: skip


def rank_some(
    q_BHTR: torch.Tensor,
    k_BGSR: torch.Tensor,
    first_B: torch.Tensor,
    rank: torch.Tensor,
    scale: float,
    begin: int,
    some: int,
    sets: int,
    plan: Tiles | None = None,
    wanted_BNT: torch.Tensor | None = None,
) -> None:
    """Write the ranks of some query rows, (B, N, t, W); -inf where a row does not see a key.

    Args:
        q_BHTR: (B, H, T, R) queries.
        k_BGSR: (B, G, S, R) keys.
        first_B: (B,) int32, first row that is no padding.
        rank: Room for as many float32.
        scale: Factor of the scores.
        begin: First of the t query rows.
        some: t; their last row sees W keys.
        sets: N; G ranks once for the query heads of a KV head, H for each.
        plan: How to cut the products, `queries` being lines; chosen from the shape if absent.
        wanted_BNT: (B, N, T) int32, contiguous, negative where ranks are not asked for; absent if all are.
    """
    q, k = q_BHTR, k_BGSR
    (batch, _, new, _), (groups, rows) = q.shape, k.shape[1:3]
    shape = shape_of(q, groups, sets, plan or tiles_of(LINES, q.element_size(), q.shape[3]))
    ranges = triton.cdiv(rows - new + begin + some, shape["N"] * TILES_EACH)
    rank_rows_kernel[(triton.cdiv(some, shape["M"]), ranges, batch * groups)](
        q, k, first_B, first_B if wanted_BNT is None else wanted_BNT, rank, scale, begin, some, new, rows,
        *q.stride()[:3], *k.stride()[:3], TILES=TILES_EACH, ASKED=int(wanted_BNT is not None), **shape,
    )  # fmt: skip


def shape_of(q_BHTR: torch.Tensor, groups: int, sets: int, plan: Tiles) -> dict[str, Any]:
    """Give the constants of a kernel whose tiles hold the query heads of a KV head, token by token.

    Args:
        q_BHTR: (B, H, T, R) queries.
        groups: G.
        sets: N.
        plan: `queries` being lines.

    Returns:
        Names and values, those of the launch among them.
    """
    group, dims = q_BHTR.shape[1] // groups, q_BHTR.shape[3]
    padded = power_of_2(group)
    return {
        "KV_HEADS": groups, "GROUP": group, "DIM": dims, "BLOCK_DIM": max(16, power_of_2(dims)),
        "M": max(1, plan.queries // padded), "JP": padded, "N": plan.keys, "SHARED": int(sets == groups and group > 1),
        "UPCAST": upcasts(q_BHTR.dtype), "num_warps": plan.num_warps, "num_stages": plan.num_stages,
    }  # fmt: skip
