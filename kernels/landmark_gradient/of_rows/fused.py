"""What the gradient of each row's logits has in common: its output times the gradient of it.

Shape legend: B batch, H query heads, T query rows, D head dim, M rows of a tile.
"""

import torch
import triton
import triton.language as tl

from ...tiling import power_of_2


@triton.jit
def row_products_kernel(out_ptr, grad_ptr, delta_ptr, count, new, heads, out_batch, out_head, out_row,
                        grad_batch, grad_head, grad_row, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
                        M: tl.constexpr):  # fmt: skip
    """Sum output times gradient along D; the grid is (B * H * T / M,).

    Args:
        out_ptr: Outputs.
        grad_ptr: Their gradients.
        delta_ptr: (B * H * T,).
        count: B * H * T.
        new: T.
        heads: H.
        out_batch: Stride of the outputs.
        out_head: Stride of the outputs.
        out_row: Stride of the outputs.
        grad_batch: Stride of the gradients.
        grad_head: Stride of the gradients.
        grad_row: Stride of the gradients.
        DIM: D.
        BLOCK_DIM: Power of two, at least D.
        M: Rows of a tile.
    """
    at = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    column = tl.arange(0, BLOCK_DIM)
    batch, head, row = at // new // heads, at // new % heads, at % new
    mask = (at < count)[:, None] & (column < DIM)[None, :]
    out_at = out_ptr + (batch * out_batch + head * out_head + row * out_row)[:, None] + column[None, :]
    grad_at = grad_ptr + (batch * grad_batch + head * grad_head + row * grad_row)[:, None] + column[None, :]
    out, grad = tl.load(out_at, mask=mask, other=0.0), tl.load(grad_at, mask=mask, other=0.0)
    tl.store(delta_ptr + at, tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1), mask=at < count)


def row_products(out_BHTD: torch.Tensor, grad_BHTD: torch.Tensor) -> torch.Tensor:
    """Sum outputs times their gradients along D.

    Args:
        out_BHTD: (B, H, T, D) outputs; any strides, the last dim contiguous.
        grad_BHTD: (B, H, T, D) their gradients; likewise.

    Returns:
        (B, H, T) float32.
    """
    batch, heads, new, dim = out_BHTD.shape
    delta_BHT = out_BHTD.new_empty(batch, heads, new, dtype=torch.float32)
    row_products_kernel[(triton.cdiv(batch * heads * new, 64),)](
        out_BHTD, grad_BHTD, delta_BHT, batch * heads * new, new, heads, *out_BHTD.stride()[:3],
        *grad_BHTD.stride()[:3], DIM=dim, BLOCK_DIM=power_of_2(dim), M=64,
    )  # fmt: skip
    return delta_BHT
