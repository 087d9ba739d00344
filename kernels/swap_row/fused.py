"""A new row put in the place of the one with the lowest mark, in one launch.

Shape legend: B batch, G KV heads, S rows in the cache, D head dim, N marks looked at together.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2
from .eager import Swapped

MARKS = 2048
LATEST = tl.constexpr(2**62)


@triton.jit
def swap_row_kernel(k_ptr, v_ptr, number_ptr, recent_ptr, keys_ptr, values_ptr, marks_ptr, numbers_ptr, key_ptr,
                    value_ptr, slot_ptr, rows, keys_batch, keys_head, keys_row, values_batch, values_head, values_row,
                    marks_batch, marks_head, marks_row, numbers_batch, numbers_head, KV_HEADS: tl.constexpr,
                    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, N: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Swap the row of one head; the grid is (B * G,).

    Args:
        k_ptr: (B, G, D) new keys, contiguous.
        v_ptr: (B, G, D) new values, contiguous.
        number_ptr: (1,) number of the new token.
        recent_ptr: (B,) last rows that stay.
        keys_ptr: Keys, written.
        values_ptr: Values, written.
        marks_ptr: Marks, written.
        numbers_ptr: Token numbers, written.
        key_ptr: (B, G, D) key that leaves.
        value_ptr: (B, G, D) value that leaves.
        slot_ptr: (B, G) where it lay.
        rows: S.
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
        N: Power of two.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    number = tl.load(number_ptr)
    newest = number - tl.load(recent_ptr + batch)
    marks = marks_ptr + batch * marks_batch + head * marks_head
    numbers = numbers_ptr + batch * numbers_batch + head * numbers_head
    best_mark, best_age = tl.full([N], float("inf"), tl.float32), tl.full([N], LATEST, tl.int64)
    best_at = tl.full([N], -1, tl.int32)
    for start in range(0, rows, N):
        at = start + tl.arange(0, N)
        age = tl.load(numbers + at, mask=at < rows, other=-1)
        mark = tl.load(marks + at.to(tl.int64) * marks_row, mask=at < rows, other=float("inf"))
        old = (age >= 0) & (age <= newest)
        better = old & ((mark < best_mark) | ((mark == best_mark) & (age < best_age)))
        best_mark, best_age = tl.where(better, mark, best_mark), tl.where(better, age, best_age)
        best_at = tl.where(better, at, best_at)
    lowest = tl.min(best_mark, 0)
    best_age = tl.where((best_at >= 0) & (best_mark == lowest), best_age, LATEST)
    oldest = tl.min(best_age, 0)
    # Numbers of tokens are unique, so the oldest of the lowest is one place; no other has its age.
    slot = tl.max(tl.where(best_age == oldest, best_at, -1), 0)
    column = tl.arange(0, BLOCK_DIM)
    there = slot >= 0
    inside = column < DIM
    written = column < tl.where(there, DIM, 0)
    place = tl.maximum(slot, 0).to(tl.int64)
    key_at = keys_ptr + batch * keys_batch + head * keys_head + place * keys_row + column
    value_at = values_ptr + batch * values_batch + head * values_head + place * values_row + column
    own = pair * DIM + column
    tl.store(key_ptr + own, tl.load(key_at, mask=written, other=0.0), mask=inside)
    tl.store(value_ptr + own, tl.load(value_at, mask=written, other=0.0), mask=inside)
    tl.store(slot_ptr + pair, slot)
    tl.debug_barrier()
    tl.store(key_at, tl.load(k_ptr + own, mask=inside, other=0.0), mask=written)
    tl.store(value_at, tl.load(v_ptr + own, mask=inside, other=0.0), mask=written)
    tl.store(marks + place * marks_row, 0.0, mask=there)
    tl.store(numbers + place, number, mask=there)


def swap_row(
    k_BGD: torch.Tensor,
    v_BGD: torch.Tensor,
    number_1: torch.Tensor,
    recent_B: torch.Tensor,
    keys_BGSD: torch.Tensor,
    values_BGSD: torch.Tensor,
    marks_BGS: torch.Tensor,
    numbers_BGS: torch.Tensor,
) -> Swapped:
    """Swap as the eager twin does.

    Args:
        k_BGD: (B, G, D) new keys.
        v_BGD: (B, G, D) new values.
        number_1: (1,) int64 number of the new token.
        recent_B: (B,) int64 last rows that stay, the new one among them.
        keys_BGSD: (B, G, S, D), written; any strides, the last dim contiguous.
        values_BGSD: (B, G, S, D), written; likewise.
        marks_BGS: (B, G, S) float32, written; any strides.
        numbers_BGS: (B, G, S) int64 token numbers, -1 for holes; written; the last dim contiguous.

    Returns:
        What left, and what was written.

    Raises:
        ValueError: If the last dim of keys, values or numbers is not contiguous.
    """
    check_contiguous_rows(keys_BGSD, values_BGSD, numbers_BGS)
    batch, heads, rows, dim = keys_BGSD.shape
    key, value = (torch.empty_like(part, memory_format=torch.contiguous_format) for part in (k_BGD, v_BGD))
    slot = torch.empty(batch, heads, dtype=torch.int32, device=key.device)
    block = min(MARKS, max(16, power_of_2(rows)))
    swap_row_kernel[(batch * heads,)](
        k_BGD.contiguous(), v_BGD.contiguous(), number_1, recent_B, keys_BGSD, values_BGSD, marks_BGS, numbers_BGS,
        key, value, slot, rows, *keys_BGSD.stride()[:3], *values_BGSD.stride()[:3], *marks_BGS.stride(),
        *numbers_BGS.stride()[:2], KV_HEADS=heads, DIM=dim, BLOCK_DIM=power_of_2(dim), N=block,
        num_warps=max(1, min(8, block // 128)), **overlap(key.device),
    )  # fmt: skip
    return Swapped(key, value, slot, keys_BGSD, values_BGSD, marks_BGS, numbers_BGS)
