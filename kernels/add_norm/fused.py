"""A residual added and normalised by one block for each token.

Shape legend: B batch, E hidden size.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import storage_dtype, upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2


@triton.jit
def add_norm_kernel(x_ptr, delta_ptr, weight_ptr, normed_ptr, sum_ptr, epsilon, SIZE: tl.constexpr,
                    BLOCK: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Add and normalise one row; the grid is (B,).

    Args:
        x_ptr: (B, E) residual stream, contiguous.
        delta_ptr: (B, E), contiguous.
        weight_ptr: (E,).
        normed_ptr: (B, E) result.
        sum_ptr: (B, E) result.
        epsilon: Added to the mean square.
        SIZE: E.
        BLOCK: Power of two, at least E.
        UPCAST: Cast to float32 after each load, and keep the sum so.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    at = tl.program_id(0).to(tl.int64) * SIZE + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    total = x.to(tl.float32) + tl.load(delta_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if not UPCAST:
        total = total.to(x.dtype).to(
            tl.float32
        )  # the stream is kept in its own dtype: what is normalised is what is kept
    tl.store(sum_ptr + at, total.to(sum_ptr.dtype.element_ty), mask=inside)
    root = tl.rsqrt(tl.sum(total * total, 0) / SIZE + epsilon)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed_ptr + at, (total * root * weight).to(normed_ptr.dtype.element_ty), mask=inside)


def add_norm(
    x_BE: torch.Tensor, delta_BE: torch.Tensor, weight_E: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add and normalise as the eager twin does, in one launch.

    Args:
        x_BE: (B, E) residual stream.
        delta_BE: (B, E) what a layer adds to it.
        weight_E: (E,) factor of each channel.
        epsilon: Added to the mean square.

    Returns:
        The normalised sum and the sum, (B, E) each.
    """
    x_BE, delta_BE = x_BE.contiguous(), delta_BE.contiguous()
    batch, size = x_BE.shape
    normed_BE, sum_BE = (x_BE.new_empty(batch, size, dtype=storage_dtype(x_BE.dtype)) for _ in range(2))
    add_norm_kernel[(batch,)](
        x_BE, delta_BE, weight_E, normed_BE, sum_BE, epsilon, size, power_of_2(size), upcasts(x_BE.dtype),
        num_warps=8, **overlap(x_BE.device, 2))  # fmt: skip
    return normed_BE.to(x_BE.dtype), sum_BE.to(x_BE.dtype)
