"""The gated product of an MLP in one launch.

Shape legend: B batch, F inner size.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..interpreter import storage_dtype
from ..overlap.fused import overlap, start_after_others

BLOCK = 1024


@triton.jit
def gate_kernel(gate_ptr, up_ptr, out_ptr, size, gate_row, up_row, BLOCK_SIZE: tl.constexpr, OVERLAP: tl.constexpr):
    """Multiply silu(gate) by up, some columns of one row; the grid is (B, F / BLOCK_SIZE).

    Args:
        gate_ptr: (B, F), rows contiguous.
        up_ptr: (B, F), rows contiguous.
        out_ptr: (B, F) result.
        size: F.
        gate_row: Stride of the rows of the gate.
        up_row: Stride of the rows of up.
        BLOCK_SIZE: Columns of a block.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    inside = column < size
    gated = tl.load(gate_ptr + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_row + column, mask=inside, other=0.0).to(tl.float32)
    out = gated / (1.0 + tl.exp(-gated)) * up
    tl.store(out_ptr + row * size + column, out.to(out_ptr.dtype.element_ty), mask=inside)


def gate(gate_BF: torch.Tensor, up_BF: torch.Tensor) -> torch.Tensor:
    """Multiply as the eager twin does; both may be columns of one wider product.

    Args:
        gate_BF: (B, F), the last dim contiguous.
        up_BF: (B, F), the last dim contiguous.

    Returns:
        (B, F).

    Raises:
        ValueError: If the last dim of either is not contiguous.
    """
    check_contiguous_rows(gate_BF, up_BF)
    batch, size = gate_BF.shape
    out_BF = gate_BF.new_empty(batch, size, dtype=storage_dtype(gate_BF.dtype))
    gate_kernel[(batch, triton.cdiv(size, BLOCK))](
        gate_BF, up_BF, out_BF, size, gate_BF.stride(0), up_BF.stride(0), BLOCK, num_warps=4,
        **overlap(out_BF.device, 2))  # fmt: skip
    return out_BF.to(gate_BF.dtype)
