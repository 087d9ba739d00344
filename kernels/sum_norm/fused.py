"""An all-reduce of few bytes and the norm behind it in one launch: a block reads a row of every rank's part.

What a small all-reduce costs is that ranks wait for each other, and launches. Here they meet once, in the kernel that
needs the sum: no copy into shared memory before it (the product writes there), no second launch after it.

Shape legend: B texts, E hidden size, X ranks, C rows of a part, at least B.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import storage_dtype, upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2
from .meeting import Meeting


@triton.jit
def meet(flags_ptr, count_ptr, row, patience, RANK: tl.constexpr, RANKS: tl.constexpr, BLOCK_RANKS: tl.constexpr):
    """Tell every other rank that this one has come to its next sum of a row, and wait for all of them.

    Args:
        flags_ptr: (X,) addresses of (C, X) int32.
        count_ptr: (C,) int32, sums so far.
        row: Which row.
        patience: How often to look before a rank counts as lost.
        RANK: Which of X this is.
        RANKS: X.
        BLOCK_RANKS: Power of two, at least X.

    Returns:
        How many ranks did not come.
    """
    peer = tl.arange(0, BLOCK_RANKS)
    other = (peer < RANKS) & (peer != RANK)
    number = tl.load(count_ptr + row) + 1
    theirs = tl.load(flags_ptr + peer, mask=other, other=0).to(tl.pointer_type(tl.int32))
    # release: whoever sees the number sees what was written here before
    tl.atomic_xchg(theirs + row * RANKS + RANK, number, mask=other, sem="release", scope="sys")
    mine = tl.load(flags_ptr + RANK).to(tl.pointer_type(tl.int32)) + row * RANKS + peer
    waiting = RANKS - 1
    while (waiting > 0) & (patience > 0):
        patience -= 1
        seen = tl.atomic_add(mine, 0, mask=other, sem="acquire", scope="sys")
        waiting = tl.sum((other & (seen < number)).to(tl.int32), 0)
    tl.debug_barrier()
    tl.store(count_ptr + row, number)
    return waiting


@triton.jit
def sum_norm_kernel(x_ptr, weight_ptr, parts_ptr, flags_ptr, count_ptr, normed_ptr, sum_ptr, epsilon, patience,
                    SIZE: tl.constexpr, BLOCK: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
                    BLOCK_RANKS: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Add and normalise one row; the grid is (B,).

    Args:
        x_ptr: (B, E) residual stream, contiguous.
        weight_ptr: (E,).
        parts_ptr: (X,) addresses of (C, E), contiguous, of the dtype of the residual.
        flags_ptr: (X,) addresses of (C, X) int32.
        count_ptr: (C,) int32, sums so far, raised by one.
        normed_ptr: (B, E) result.
        sum_ptr: (B, E) result.
        epsilon: Added to the mean square.
        patience: How often to look for the other ranks before the row is NaN.
        SIZE: E.
        BLOCK: Power of two, at least E.
        RANK: Which of X this is.
        RANKS: X.
        BLOCK_RANKS: Power of two, at least X.
        UPCAST: Cast to float32 after each load, and keep the sum so.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    at = row.to(tl.int64) * SIZE + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    lost = meet(flags_ptr, count_ptr, row, patience, RANK, RANKS, BLOCK_RANKS)
    # a rank that waited for ever would hang; NaN is found and told
    whole = tl.zeros([BLOCK], tl.float32) + tl.where(lost > 0, float("nan"), 0.0)
    for rank in tl.static_range(RANKS):
        part_ptr = tl.load(parts_ptr + rank).to(tl.pointer_type(x_ptr.dtype.element_ty))
        part_ptr = tl.multiple_of(part_ptr, 16)
        # past the first cache, which another rank's writing does not reach
        whole += tl.load(part_ptr + at, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
    total = x.to(tl.float32) + whole
    if not UPCAST:
        total = total.to(x.dtype).to(tl.float32)  # what is normalised is what is kept
    tl.store(sum_ptr + at, total.to(sum_ptr.dtype.element_ty), mask=inside)
    root = tl.rsqrt(tl.sum(total * total, 0) / SIZE + epsilon)
    tl.store(normed_ptr + at, (total * root * weight).to(normed_ptr.dtype.element_ty), mask=inside)


def sum_norm(
    x_BE: torch.Tensor,
    weight_E: torch.Tensor,
    epsilon: float,
    parts: tuple[torch.Tensor, ...],
    meeting: Meeting,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add and normalise as the eager twin does, in one launch, as soon as all ranks have come.

    Args:
        x_BE: (B, E) residual stream, the same on every rank.
        weight_E: (E,) factor of each channel.
        epsilon: Added to the mean square.
        parts: X tensors (C, E), one of each rank, contiguous, of the dtype of the residual.
        meeting: Where these are, and where the ranks say that they are there.

    Returns:
        The normalised sum and the sum, (B, E) each.

    Raises:
        ValueError: If parts have another dtype than the residual.
    """
    if any(part.dtype != x_BE.dtype for part in parts):
        raise ValueError(f"expected parts of dtype {x_BE.dtype}, got {[str(part.dtype) for part in parts]}")
    x_BE = x_BE.contiguous()
    batch, size = x_BE.shape
    normed_BE, sum_BE = (x_BE.new_empty(batch, size, dtype=storage_dtype(x_BE.dtype)) for _ in range(2))
    sum_norm_kernel[(batch,)](
        x_BE, weight_E, meeting.parts_X, meeting.flags_X, meeting.count_C, normed_BE, sum_BE, epsilon,
        meeting.patience, SIZE=size,
        BLOCK=power_of_2(size), RANK=meeting.rank, RANKS=len(parts), BLOCK_RANKS=power_of_2(len(parts)),
        UPCAST=upcasts(x_BE.dtype), num_warps=16 if size > 4096 else 8, **overlap(x_BE.device))  # fmt: skip
    return normed_BE.to(x_BE.dtype), sum_BE.to(x_BE.dtype)
