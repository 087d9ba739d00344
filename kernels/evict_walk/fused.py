"""Eviction by one block of threads for each set of rows, which holds places and marks of all keys held in registers.

A cache of few columns is walked by weights of the keys held and the next ones, made before (`ahead/`), or, where the
last row alone marks by many heads, by those of the few that may leave (`few/`). What stands here is the slower walk of
larger caches: scores of some rows with all keys are products of tiles, written before, and the walk reads those of the
keys it holds.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), t of them at a time, S
key rows, W key rows that the last of those sees, D head dim, N = 1 or G sets of rows, C places of a cache, E query
heads of a set.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..kth_score.stored.fused import rank_some
from ..tiling import power_of_2
from .ahead.fused import NONE, walk_ahead_kernel, weights_kernel
from .eager import Walked
from .few.fused import walk_lowest
from .job import Job, State, products, room_of_weights
from .pair.fused import walk_pair_kernel

# Scores held at one time (32 MB, which stay in L2), and those of one row in registers.
SCORES_AT_ONCE, SCORES_OF_ROW = 2**23, 8192
SCORES_EACH = 16  # of a thread
# Of the walk by weights made before: most columns, rows at a time at the least, and weights at once.
MOST_COLUMNS, LEAST_ROWS, SCORES_OF_CHUNK = 8192, 256, 16384
# Of a head's sum of weights, 2^100 for its best key, held or not: weights less than 1e-26 of the sum count as none.
LEAST = 1e-12
# Of the walk that sums while it finds what leaves: most heads of a set, and what share of a sum has lost no digits.
HEADS_OF_PAIR, LEFT = 2, 0.25
# Of the walk among few keys: fewest heads of a set, of which all held would take several rounds, and rows at a time.
LEAST_HEADS, ROWS_NAMING = 32, 64


@triton.jit
def walk_rows_kernel(score_ptr, mark_ptr, number_ptr, budget_ptr, recent_ptr, place_ptr, count_ptr, until_ptr,
                     last_ptr, begin, some, new, rows, width, carry, share, SETS: tl.constexpr, HEADS: tl.constexpr,
                     CHUNK: tl.constexpr, PLACES: tl.constexpr):  # fmt: skip
    """Walk some rows of one set; the grid is (B * N,).

    Args:
        score_ptr: (B, H, t, W) scaled scores, times log2(e).
        mark_ptr: (B, N, S) marks that keys begin with.
        number_ptr: (B, N, S) token numbers; negative: never held.
        budget_ptr: (B, T) most keys held.
        recent_ptr: (B, T) last tokens that stay.
        place_ptr: (B, N, C) which key lies at each place, S none; read and written.
        count_ptr: (B, N) keys held; read and written.
        until_ptr: (B, N, S) rows at which keys leave; written for those that do.
        last_ptr: (B, N, S) marks of held keys; read and written.
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        width: W.
        carry: Factor of marks.
        share: Factor of weights.
        SETS: N.
        HEADS: E.
        CHUNK: Heads that are weighed at once, a power of two.
        PLACES: C, a power of two.
    """
    pair = tl.program_id(0).to(tl.int64)
    batch, places = pair // SETS, tl.arange(0, PLACES)
    number_base, mark_base, last_base = number_ptr + pair * rows, mark_ptr + pair * rows, last_ptr + pair * rows
    column = tl.load(place_ptr + pair * PLACES + places)
    count = tl.load(count_ptr + pair)
    number = tl.load(number_base + column, mask=column < rows, other=0)
    mark = tl.load(last_base + column, mask=column < rows, other=0.0)
    for t in range(some):
        row, own = begin + t, rows - new + begin + t
        now, mark_own = tl.load(number_base + own), tl.load(mark_base + own)
        budget, recent = tl.load(budget_ptr + batch * new + row), tl.load(recent_ptr + batch * new + row)
        if now >= 0:
            full = tl.zeros_like(column) + count + 1 > budget
            old = (column < rows) & (number <= now - recent)
            # Marks are not negative, so their bits are ordered as they are; of equal ones the oldest comes first. Which
            # it is, its column tells: the compiler may hold marks twice, summed in another order, and not equal.
            order = (mark.to(tl.int32, bitcast=True).to(tl.int64) << 32) | column.to(tl.int64)
            lowest = tl.min(tl.where(old, order, NONE), 0)
            gone = (lowest & 0xFFFFFFFF).to(tl.int32)
            leaves = old & (column == gone) & full
            if (lowest != NONE) & (count + 1 > budget):
                tl.store(until_ptr + pair * rows + gone, row)
            here = leaves | ((places == count) & (full == 0))
            column, number = tl.where(here, own, column), tl.where(here, now, number)
            mark = tl.where(here, mark_own, mark)
            count = tl.minimum(count + 1, tl.maximum(budget, count))
            held = column < rows
            added = tl.zeros([PLACES], tl.float32)
            for head in range(0, HEADS, CHUNK):
                each = head + tl.arange(0, CHUNK)
                line = ((pair * HEADS + each.to(tl.int64)) * some + t) * width
                mask = held[None, :] & (each < HEADS)[:, None]
                score = tl.load(score_ptr + line[:, None] + column[None, :], mask=mask, other=float("-inf"))
                top = tl.max(score, 1)
                weight = tl.exp2(score - tl.where(top == float("-inf"), 0.0, top)[:, None])
                total = tl.sum(weight, 1)
                added += tl.sum(weight * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None], 0)
            mark = carry * mark + share * added
    tl.store(place_ptr + pair * PLACES + places, column)
    tl.store(count_ptr + pair, count)
    tl.store(last_base + column, mark, mask=column < rows)


def evict_walk(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    mark_BNS: torch.Tensor,
    number_BNS: torch.Tensor,
    budget_BT: torch.Tensor,
    recent_BT: torch.Tensor,
    scale: float,
    carry: float,
    share: float,
    most: int,
) -> Walked:
    """Walk as the eager twin does: two launches for as many rows as 32 MB, and columns beside the cache, have room for.

    Where the keys held weigh next to nothing beside one that left before, a row is weighed again, more slowly.

    Args:
        q_BHTD: (B, H, T, D) queries; any strides, the last dim contiguous.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        mark_BNS: (B, N, S) float32.
        number_BNS: (B, N, S) int32.
        budget_BT: (B, T) int32.
        recent_BT: (B, T) int32.
        scale: Factor of the scores.
        carry: Factor of marks.
        share: Factor of weights.
        most: At least as many keys as any set holds at any time.

    Returns:
        How long each key is held, and the marks in the end.

    Raises:
        ValueError: If the last dim of a tensor is not contiguous.
    """
    check_contiguous_rows(q_BHTD, k_BGSD)
    number, begun = number_BNS.int().contiguous(), mark_BNS.float().contiguous()
    budget, recent = budget_BT.int().contiguous(), recent_BT.int().contiguous()
    job = Job(q_BHTD, k_BGSD, begun, number, budget, recent, scale, (carry, share), power_of_2(max(most, 32)))
    if carry == 0 and power_of_2(most + ROWS_NAMING) <= MOST_COLUMNS and job.each >= LEAST_HEADS:
        return walk_lowest(job._replace(places=most), ROWS_NAMING, LEAST)
    if _wide(most, q_BHTD.shape[2]) <= MOST_COLUMNS:
        return _walk_ahead(job._replace(places=most))
    return _walk_rows(job)


def _walk_ahead(job: Job) -> Walked:
    state, q, k, sets = State.of(job), job.q_BHTD, job.k_BGSD, job.number_BNS.shape[1]
    (batch, heads, new, _), rows = q.shape, k.shape[2]
    wide = _wide(job.places, new)
    step = max(1, min(new, wide - job.places, SCORES_AT_ONCE // (batch * heads * wide)))
    weight, total = room_of_weights(job, step, wide)
    after, tiles = torch.empty_like(state.place), products(job, wide)
    walk, shape = _walk_of(job, wide)
    scale, strides = job.scale * LOG2_E, (*q.stride()[:3], *k.stride()[:3])
    for begin in range(0, new, step):
        size = (begin, min(step, new - begin), new, rows, job.places)
        weights_kernel[(triton.cdiv(size[1], tiles["M"]), batch * heads)](
            q, k, state.place, job.number_BNS, weight, total, scale, *size, *strides, **tiles
        )
        walk[(batch * sets,)](
            q, k, weight, *job[2:6], state.place, after, *state[1:], scale, *size, *job.factors, *strides, **shape
        )
        state, after = state._replace(place=after), state.place
    return state.ended(new)


def _wide(places: int, new: int) -> int:
    """Columns of the walk by weights made before: keys held, and some rows' own."""
    return power_of_2(places + min(new, LEAST_ROWS))


def _walk_of(job: Job, wide: int) -> tuple[Any, dict[str, Any]]:
    """The walk by weights made before for so many heads of a set, and its constants."""
    each = job.each
    shape = {
        "GROUP": job.q_BHTD.shape[1] // job.k_BGSD.shape[1], "DIM": job.q_BHTD.shape[3],
        "SETS": job.number_BNS.shape[1], "HEADS": each, "WIDE": wide, "LEAST": LEAST,
        "num_warps": max(1, min(8, wide // 128)),
    }  # fmt: skip
    if each <= HEADS_OF_PAIR:
        return walk_pair_kernel, shape | {"LEFT": LEFT}
    return walk_ahead_kernel, shape | {"CHUNK": min(power_of_2(each), max(1, SCORES_OF_CHUNK // wide))}


def _walk_rows(job: Job) -> Walked:
    state = State.of(job)
    chunk = max(1, min(power_of_2(job.each), SCORES_OF_ROW // job.places))
    warps = max(1, min(16, job.places * chunk // (32 * SCORES_EACH)))
    for size, score in _scores(job):
        walk_rows_kernel[(state.held.numel(),)](
            score, *job[2:6], *state, *size, *job.factors, SETS=job.number_BNS.shape[1], HEADS=job.each,
            CHUNK=chunk, PLACES=job.places, num_warps=warps,
        )  # fmt: skip
    return state.ended(job.q_BHTD.shape[2])


def _scores(job: Job) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Scores of some rows at a time with all keys, times log2(e), and (begin, t, T, S, W)."""
    (batch, heads, new, _), rows = job.q_BHTD.shape, job.k_BGSD.shape[2]
    step = max(1, min(new, SCORES_AT_ONCE // (batch * heads * rows)))
    score = torch.empty(batch * heads * step * rows, dtype=torch.float32, device=job.q_BHTD.device)
    seen = torch.zeros(batch, dtype=torch.int32, device=job.q_BHTD.device)
    for begin in range(0, new, step):
        some = min(step, new - begin)
        rank_some(job.q_BHTD, job.k_BGSD, seen, score, job.scale * LOG2_E, begin, some, heads)
        yield (begin, some, new, rows, rows - new + begin + some), score
