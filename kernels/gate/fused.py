"""The gated product of an MLP in one launch.

Shape legend: B batch, F inner size.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import storage_dtype
from ..overlap.fused import overlap, start_after_others

BLOCK = 1024


@triton.jit
def gate_kernel(gate_ptr, up_ptr, out_ptr, size, BLOCK_SIZE: tl.constexpr, OVERLAP: tl.constexpr):
    """Multiply silu(gate) by up, a block of elements; the grid covers all of them.

    Args:
        gate_ptr: (B, F), contiguous.
        up_ptr: (B, F), contiguous.
        out_ptr: (B, F) result.
        size: B * F.
        BLOCK_SIZE: Elements of a block.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    at = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    inside = at < size
    gated = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    out = gated / (1.0 + tl.exp(-gated)) * up
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


def gate(gate_BF: torch.Tensor, up_BF: torch.Tensor) -> torch.Tensor:
    """Multiply as the eager twin does.

    Args:
        gate_BF: (B, F).
        up_BF: (B, F).

    Returns:
        (B, F).
    """
    out_BF = gate_BF.new_empty(gate_BF.shape, dtype=storage_dtype(gate_BF.dtype))
    gate_kernel[(triton.cdiv(out_BF.numel(), BLOCK),)](
        gate_BF.contiguous(), up_BF.contiguous(), out_BF, out_BF.numel(), BLOCK, num_warps=4, **overlap(out_BF.device)
    )  # fmt: skip
    return out_BF.to(gate_BF.dtype)
