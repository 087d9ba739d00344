"""Queries and keys turned by their position in one launch: one block for each head of each text.

Shape legend: B batch, H query heads, G KV heads, D head dim.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import storage_dtype
from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2


@triton.jit
def rotate_kernel(q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, q_batch, k_batch, HEADS: tl.constexpr,
                  KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_HALF: tl.constexpr,
                  OVERLAP: tl.constexpr):  # fmt: skip
    """Turn one head; the grid is (B, H + G).

    Args:
        q_ptr: (B, H, D) queries, those of a text contiguous.
        k_ptr: (B, G, D) keys, those of a text contiguous.
        cos_ptr: (B, D) cosines.
        sin_ptr: (B, D) sines.
        q_out_ptr: (B, H, D) result.
        k_out_ptr: (B, G, D) result.
        q_batch: Stride of the queries.
        k_batch: Stride of the keys.
        HEADS: H.
        KV_HEADS: G.
        DIM: D.
        BLOCK_HALF: Power of two, at least D / 2.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK_HALF)
    inside = column < DIM // 2
    cos = tl.load(cos_ptr + batch * DIM + column, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + batch * DIM + column, mask=inside, other=0.0).to(tl.float32)
    if head < HEADS:
        source, target = q_ptr + batch * q_batch + head * DIM, q_out_ptr + (batch * HEADS + head) * DIM
    else:
        source = k_ptr + batch * k_batch + (head - HEADS) * DIM
        target = k_out_ptr + (batch * KV_HEADS + head - HEADS) * DIM
    first = tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + DIM // 2 + column, mask=inside, other=0.0).to(tl.float32)
    kind = target.dtype.element_ty
    tl.store(target + column, (first * cos - second * sin).to(kind), mask=inside)
    tl.store(target + DIM // 2 + column, (second * cos + first * sin).to(kind), mask=inside)


def rotate_rows(
    q_BHD: torch.Tensor, k_BGD: torch.Tensor, cos_BD: torch.Tensor, sin_BD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn as the eager twin does.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGD: (B, G, D) keys.
        cos_BD: (B, D) cosines, both halves alike.
        sin_BD: (B, D) sines, both halves alike.

    Returns:
        Queries and keys, turned.
    """
    batch, heads, dim = q_BHD.shape
    groups, dtype = k_BGD.shape[1], q_BHD.dtype
    q_out, k_out = (q_BHD.new_empty(batch, n, dim, dtype=storage_dtype(dtype)) for n in (heads, groups))
    q_BHD, k_BGD = one_text(q_BHD), one_text(k_BGD)
    rotate_kernel[(batch, heads + groups)](
        q_BHD, k_BGD, cos_BD.contiguous(), sin_BD.contiguous(), q_out, k_out, q_BHD.stride(0), k_BGD.stride(0), heads,
        groups, dim, power_of_2(dim // 2), num_warps=1, **overlap(q_BHD.device))  # fmt: skip
    return q_out.to(dtype), k_out.to(dtype)


def one_text(x_BnD: torch.Tensor) -> torch.Tensor:
    """Copy if the heads of a text do not follow each other; columns of a wider product do.

    Args:
        x_BnD: (B, n, D).

    Returns:
        The same values; the last two dims contiguous.
    """
    return x_BnD if x_BnD.stride()[1:] == (x_BnD.shape[2], 1) else x_BnD.contiguous()
