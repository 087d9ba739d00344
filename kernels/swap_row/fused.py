"""A new row put in the place of the one with the lowest mark: one launch, or two where blocks share a head.

Shape legend: B batch, G KV heads, S rows in the cache, D head dim, N marks looked at together.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..op import Age
from ..overlap.fused import let_next_begin, overlap, wait_for_others
from ..tiling import multiprocessors, power_of_2
from .eager import Swapped

SHARED, MOST_SPLITS = 4096, 64  # marks of a block where blocks share a head, and so many of these at most
LATEST = tl.constexpr(2**62)


@triton.jit
def lowest_of(marks, numbers, marks_row, first, end, newest, N: tl.constexpr):
    """Find the row with the lowest mark among some, the oldest of equals, with the next tile under way.

    Args:
        marks: Pointer to the marks of a head.
        numbers: Pointer to its token numbers.
        marks_row: Stride of the marks.
        first: First row.
        end: One past the last row.
        newest: Largest number of a row that may leave.
        N: Power of two.

    Returns:
        Its mark, its number, and where it is: -1 where none may leave.
    """
    best_mark, best_age = tl.full([N], float("inf"), tl.float32), tl.full([N], LATEST, tl.int64)
    best_at = tl.full([N], -1, tl.int32)
    at = first + tl.arange(0, N)
    age = tl.load(numbers + at, mask=at < end, other=-1)
    mark = tl.load(marks + at.to(tl.int64) * marks_row, mask=at < end, other=float("inf"))
    for _ in range(first, end, N):
        after = at + N
        next_age = tl.load(numbers + after, mask=after < end, other=-1)
        next_mark = tl.load(marks + after.to(tl.int64) * marks_row, mask=after < end, other=float("inf"))
        old = (age >= 0) & (age <= newest)
        better = old & ((mark < best_mark) | ((mark == best_mark) & (age < best_age)))
        best_mark, best_age = tl.where(better, mark, best_mark), tl.where(better, age, best_age)
        best_at = tl.where(better, at, best_at)
        at, age, mark = after, next_age, next_mark
    return oldest_of(best_mark, best_age, best_at)


@triton.jit
def oldest_of(mark, age, at):
    """Choose the lowest mark, the oldest of equals.

    Args:
        mark: Marks.
        age: Numbers of tokens, which are unique.
        at: Rows, -1 for none.

    Returns:
        The mark, number and row of one: -1 where there is none.
    """
    lowest = tl.min(mark, 0)
    age = tl.where((at >= 0) & (mark == lowest), age, LATEST)
    oldest = tl.min(age, 0)
    return lowest, oldest, tl.max(tl.where(age == oldest, at, -1), 0)


@triton.jit
def lowest_row_kernel(number_ptr, recent_ptr, marks_ptr, numbers_ptr, mark_ptr, age_ptr, at_ptr, rows, share,
                      marks_batch, marks_head, marks_row, numbers_batch, numbers_head, KV_HEADS: tl.constexpr,
                      SPLITS: tl.constexpr, N: tl.constexpr, SETTLED: tl.constexpr,
                      OVERLAP: tl.constexpr):  # fmt: skip
    """Find the row with the lowest mark of each part of a head; the grid is (B * G, X).

    Args:
        number_ptr: (1,) number of the new token.
        recent_ptr: (B,) last rows that stay.
        marks_ptr: Marks.
        numbers_ptr: Token numbers.
        mark_ptr: (B * G, X) float32 result.
        age_ptr: (B * G, X) int64 result: its number.
        at_ptr: (B * G, X) int32 result: where it is.
        rows: S.
        share: Rows of a part.
        marks_batch: Stride of the marks.
        marks_head: Stride of the marks.
        marks_row: Stride of the marks.
        numbers_batch: Stride of the numbers.
        numbers_head: Stride of the numbers.
        KV_HEADS: G.
        SPLITS: X.
        N: Power of two.
        SETTLED: Whether the cache may be read before the wait.
        OVERLAP: How the launch overlaps others.
    """
    let_next_begin(OVERLAP)
    if not SETTLED:
        wait_for_others(OVERLAP)
    pair, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    newest = tl.load(number_ptr) - tl.load(recent_ptr + batch)
    mark, age, at = lowest_of(
        marks_ptr + batch * marks_batch + head * marks_head, numbers_ptr + batch * numbers_batch + head * numbers_head,
        marks_row, split * share, tl.minimum(rows, (split + 1) * share), newest, N)  # fmt: skip
    if SETTLED:
        wait_for_others(OVERLAP)
    place = pair * SPLITS + split
    tl.store(mark_ptr + place, mark)
    tl.store(age_ptr + place, age)
    tl.store(at_ptr + place, at)


@triton.jit
def swap_row_kernel(k_ptr, v_ptr, number_ptr, recent_ptr, keys_ptr, values_ptr, marks_ptr, numbers_ptr, key_ptr,
                    value_ptr, slot_ptr, mark_ptr, age_ptr, at_ptr, rows, k_batch, k_head, v_batch, v_head,
                    keys_batch, keys_head, keys_row, values_batch, values_head, values_row,
                    marks_batch, marks_head, marks_row, numbers_batch, numbers_head, KV_HEADS: tl.constexpr,
                    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, SPLITS: tl.constexpr,
                    BLOCK_SPLITS: tl.constexpr, N: tl.constexpr, SETTLED: tl.constexpr,
                    OVERLAP: tl.constexpr):  # fmt: skip
    """Swap the row of one head; the grid is (B * G,).

    Args:
        k_ptr: (B, G, D) new keys.
        v_ptr: (B, G, D) new values.
        number_ptr: (1,) number of the new token.
        recent_ptr: (B,) last rows that stay.
        keys_ptr: Keys, written.
        values_ptr: Values, written.
        marks_ptr: Marks, written.
        numbers_ptr: Token numbers, written.
        key_ptr: (B, G, D) key that leaves.
        value_ptr: (B, G, D) value that leaves.
        slot_ptr: (B, G) where it lay.
        mark_ptr: (B * G, X) lowest mark of each part, if X is not 1.
        age_ptr: (B * G, X) its number.
        at_ptr: (B * G, X) where it is.
        rows: S.
        k_batch: Stride of the new keys.
        k_head: Stride of the new keys.
        v_batch: Stride of the new values.
        v_head: Stride of the new values.
        keys_batch: Stride of the keys.
        keys_head: Stride of the keys.
        keys_row: Stride of the keys.
        values_batch: Stride of the values.
        values_head: Stride of the values.
        values_row: Stride of the values.
        marks_batch: Stride of the marks.
        marks_head: Stride of the marks.
        marks_row: Stride of the marks.
        numbers_batch: Stride of the numbers.
        numbers_head: Stride of the numbers.
        KV_HEADS: G.
        DIM: D.
        BLOCK_DIM: Power of two, at least D.
        SPLITS: X.
        BLOCK_SPLITS: Power of two, at least X.
        N: Power of two.
        SETTLED: Whether the cache may be read before the wait, and the parts' lowest behind it.
        OVERLAP: How the launch overlaps others.
    """
    let_next_begin(OVERLAP)
    early: tl.constexpr = SETTLED and SPLITS == 1
    if not early:
        wait_for_others(OVERLAP)
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    number = tl.load(number_ptr)
    newest = number - tl.load(recent_ptr + batch)
    marks = marks_ptr + batch * marks_batch + head * marks_head
    numbers = numbers_ptr + batch * numbers_batch + head * numbers_head
    column = tl.arange(0, BLOCK_DIM)
    inside, own = column < DIM, pair * DIM + column
    key_of = k_ptr + batch * k_batch + head * k_head + column
    value_of = v_ptr + batch * v_batch + head * v_head + column
    if not early:  # asked for before anything is waited for
        k, v = tl.load(key_of, mask=inside, other=0.0), tl.load(value_of, mask=inside, other=0.0)
    if SPLITS == 1:
        _, _, slot = lowest_of(marks, numbers, marks_row, 0, rows, newest, N)
    else:
        split = tl.arange(0, BLOCK_SPLITS)
        known, part = split < SPLITS, pair * SPLITS + split
        mark = tl.load(mark_ptr + part, mask=known, other=float("inf"))
        age = tl.load(age_ptr + part, mask=known, other=LATEST)
        _, _, slot = oldest_of(mark, age, tl.load(at_ptr + part, mask=known, other=-1))
    there = slot >= 0
    written = column < tl.where(there, DIM, 0)
    place = tl.maximum(slot, 0).to(tl.int64)
    key_at = keys_ptr + batch * keys_batch + head * keys_head + place * keys_row + column
    value_at = values_ptr + batch * values_batch + head * values_head + place * values_row + column
    key, value = tl.load(key_at, mask=written, other=0.0), tl.load(value_at, mask=written, other=0.0)
    if early:
        wait_for_others(OVERLAP)
        k, v = tl.load(key_of, mask=inside, other=0.0), tl.load(value_of, mask=inside, other=0.0)
    tl.store(key_ptr + own, key, mask=inside)
    tl.store(value_ptr + own, value, mask=inside)
    tl.store(slot_ptr + pair, slot)
    tl.debug_barrier()
    tl.store(key_at, k, mask=written)
    tl.store(value_at, v, mask=written)
    tl.store(marks + place * marks_row, 0.0, mask=there)
    tl.store(numbers + place, number, mask=there)


class Cut(NamedTuple):
    """How the search for the lowest mark is cut.

    Attributes:
        splits: Blocks that share a head; where there are several, a launch of their own finds the lowest of each.
        block: Marks looked at together.
        num_warps: Warps of a block.
    """

    splits: int
    block: int
    num_warps: int


def cut_of(pairs: int, rows: int, multiprocessor_count: int) -> Cut:
    """Cut the search: blocks share a head where at most half of the SMs would have one; else it is one block's own.

    Args:
        pairs: Heads of all sequences.
        rows: S.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The cut.
    """
    splits = min(MOST_SPLITS, multiprocessor_count // pairs, triton.cdiv(rows, SHARED))
    if splits > 1:
        return Cut(splits, SHARED, 8)
    if pairs > multiprocessor_count:  # few registers: five blocks on an SM
        return Cut(1, 1024, 8)
    return Cut(1, 2048, 16)  # half of the registers of an SM: the next launch looks while this one ends


def swap_row(
    k_BGD: torch.Tensor,
    v_BGD: torch.Tensor,
    number_1: torch.Tensor,
    recent_B: torch.Tensor,
    keys_BGSD: torch.Tensor,
    values_BGSD: torch.Tensor,
    marks_BGS: torch.Tensor,
    numbers_BGS: torch.Tensor,
    age: Age = "new",
    plan: Cut | None = None,
) -> Swapped:
    """Swap as the eager twin does.

    Args:
        k_BGD: (B, G, D) new keys; any strides, the last dim contiguous.
        v_BGD: (B, G, D) new values; likewise.
        number_1: (1,) int64 number of the new token.
        recent_B: (B,) int64 last rows that stay, the new one among them.
        keys_BGSD: (B, G, S, D), written; any strides, the last dim contiguous.
        values_BGSD: (B, G, S, D), written; likewise.
        marks_BGS: (B, G, S) float32, written; any strides.
        numbers_BGS: (B, G, S) int64 token numbers, -1 for holes; written; the last dim contiguous.
        age: Of the cache, its marks and numbers, the number of the token and `recent_B`; if "settled" (see `overlap`)
            they are read before the wait.
        plan: How to cut the search; chosen from the shape if absent.

    Returns:
        What left, and what was written.

    Raises:
        ValueError: If the last dim of rows or numbers is not contiguous.
    """
    check_contiguous_rows(k_BGD, v_BGD, keys_BGSD, values_BGSD, numbers_BGS)
    batch, heads, rows, dim = keys_BGSD.shape
    key, value = (torch.empty_like(part, memory_format=torch.contiguous_format) for part in (k_BGD, v_BGD))
    slot = torch.empty(batch, heads, dtype=torch.int32, device=key.device)
    plan = plan or cut_of(batch * heads, rows, multiprocessors(key.device))
    splits, share = plan.splits, triton.cdiv(rows, plan.splits)
    block = min(plan.block, max(16, power_of_2(share)))
    cut = {"KV_HEADS": heads, "SPLITS": splits, "N": block, "SETTLED": age == "settled", **overlap(key.device, 2)}
    num_warps = max(1, min(plan.num_warps, block // 128))
    parts = [torch.empty(batch * heads, splits, dtype=dtype, device=key.device)
             for dtype in (torch.float32, torch.int64, torch.int32)]  # fmt: skip
    if splits > 1:
        lowest_row_kernel[(batch * heads, splits)](
            number_1, recent_B, marks_BGS, numbers_BGS, *parts, rows, share, *marks_BGS.stride(),
            *numbers_BGS.stride()[:2], num_warps=num_warps, **cut)  # fmt: skip
    swap_row_kernel[(batch * heads,)](
        k_BGD, v_BGD, number_1, recent_B, keys_BGSD, values_BGSD, marks_BGS, numbers_BGS, key, value, slot, *parts,
        rows, *k_BGD.stride()[:2], *v_BGD.stride()[:2], *keys_BGSD.stride()[:3], *values_BGSD.stride()[:3],
        *marks_BGS.stride(), *numbers_BGS.stride()[:2], DIM=dim, BLOCK_DIM=power_of_2(dim),
        BLOCK_SPLITS=power_of_2(splits), num_warps=num_warps if splits == 1 else 1, **cut)  # fmt: skip
    return Swapped(key, value, slot, keys_BGSD, values_BGSD, marks_BGS, numbers_BGS)
