"""What rows that were not attended would have added, in one launch.

Shape legend: B batch, H query heads, G KV heads, J = H / G, D head dim.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import storage_dtype
from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2

TINY = tl.constexpr(2.0**-126)


@triton.jit
def fill_kernel(out_ptr, share_ptr, sum_ptr, context_ptr, filled_ptr, factor, HEADS: tl.constexpr, GROUP: tl.constexpr,
                DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, SUMS: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Fill one head of one sequence; the grid is (B * H,).

    Args:
        out_ptr: (B, H, D) attention, contiguous.
        share_ptr: (B, H) float32, contiguous.
        sum_ptr: (B, G, D) float32, contiguous; not used without SUMS.
        context_ptr: (B,) visible rows.
        filled_ptr: (B, H, D) result.
        factor: Of the missing weight.
        HEADS: H.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least D.
        SUMS: Whether the mean of the values takes the place of what is missing.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    head, column = tl.program_id(0), tl.arange(0, BLOCK_DIM)
    inside = column < DIM
    context = tl.load(context_ptr + head // HEADS).to(tl.int32)
    share = tl.load(share_ptr + head)
    # A NaN stays one: what compares with it is false.
    dropped = tl.where(share > 1.0, 0.0, 1.0 - share) * factor
    whole = share + dropped
    lack = dropped / tl.where(whole < TINY, TINY, whole)
    out = tl.load(out_ptr + head * DIM + column, mask=inside, other=0.0).to(tl.float32) * (1.0 - lack)
    if SUMS:
        total = tl.load(sum_ptr + head // GROUP * DIM + column, mask=inside, other=0.0)
        out += lack * (total / tl.maximum(context, 1).to(tl.float32))
    out = tl.where(context == 0, 0.0, out)
    tl.store(filled_ptr + head * DIM + column, out.to(filled_ptr.dtype.element_ty), mask=inside)


def fill_missing(
    out_BHD: torch.Tensor, share_BH: torch.Tensor, sum_BGD: torch.Tensor | None, context_B: torch.Tensor, factor: float
) -> torch.Tensor:
    """Fill as the eager twin does.

    Args:
        out_BHD: (B, H, D) attention over the chosen rows.
        share_BH: (B, H) float32, the share of the weight that the chosen rows have.
        sum_BGD: (B, G, D) float32, sums of the values of all visible rows; None if nothing takes their place.
        context_B: (B,) integers, visible rows.
        factor: Of the missing weight.

    Returns:
        (B, H, D) in the dtype of the attention.
    """
    batch, heads, dim = out_BHD.shape
    filled_BHD = out_BHD.new_empty(out_BHD.shape, dtype=storage_dtype(out_BHD.dtype))
    groups = heads if sum_BGD is None else sum_BGD.shape[1]
    sums = share_BH if sum_BGD is None else sum_BGD.contiguous()
    fill_kernel[(batch * heads,)](
        out_BHD.contiguous(), share_BH.contiguous(), sums, context_B.contiguous(), filled_BHD, factor, HEADS=heads,
        GROUP=heads // groups, DIM=dim, BLOCK_DIM=power_of_2(dim), SUMS=sum_BGD is not None, num_warps=1,
        **overlap(out_BHD.device),
    )  # fmt: skip
    return filled_BHD.to(out_BHD.dtype)
