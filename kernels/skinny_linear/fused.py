"""A linear layer of few tokens at the rate at which its weight can be read.

Rows of the weight are the long side of the product, tokens the short one. Each block has an even share of the rows, so
that all end at once. While the kernel before still runs, blocks that have found room fetch the beginning of their rows
into L2: all SMs write there, so what is loaded after the wait is what was written last.

Shape legend: B tokens, E inputs, F outputs.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import storage_dtype, upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import multiprocessors
from ..topk_decode.fused import shared_bytes
from .cut import MOST_TOKENS, SkinnyPlan, skinny_plan, tile_tokens
from .eager import skinny_linear as by_torch


@triton.jit
def fetch_ahead(weight_ptr, first, last, INPUTS: tl.constexpr, BLOCK_ROWS: tl.constexpr, THREADS: tl.constexpr,
                FETCH: tl.constexpr):  # fmt: skip
    """Fetch the beginning of some rows into L2, each thread a piece of one.

    Args:
        weight_ptr: (F, E), contiguous, rows aligned to 16 bytes.
        first: The first row.
        last: One past the last row.
        INPUTS: E.
        BLOCK_ROWS: Power of two, at least as many as the rows.
        THREADS: Of a block.
        FETCH: Elements of a piece.
    """
    thread = tl.arange(0, THREADS)
    row, start = first + thread % BLOCK_ROWS, thread // BLOCK_ROWS * FETCH
    item_bytes: tl.constexpr = weight_ptr.dtype.element_ty.primitive_bitwidth // 8
    size = tl.where(row < last, tl.minimum(INPUTS - start, FETCH), 0) * item_bytes
    tl.inline_asm_elementwise(
        """
        {
        .reg .pred some;
        setp.gt.s32 some, $2, 0;
        @some cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }
        """,
        "=r,l,r",
        [weight_ptr + row.to(tl.int64) * INPUTS + start, size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def skinny_linear_kernel(x_ptr, weight_ptr, bias_ptr, out_ptr, tokens, outputs, x_row, out_row,
                         INPUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                         BLOCK_INPUTS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BIASED: tl.constexpr,
                         THREADS: tl.constexpr, FETCH: tl.constexpr, UPCAST: tl.constexpr,
                         OVERLAP: tl.constexpr):  # fmt: skip
    """Multiply some rows of the weight with some tokens; the grid is (F / ROWS, B / BLOCK_TOKENS).

    Args:
        x_ptr: (B, E) inputs, the last dim contiguous.
        weight_ptr: (F, E), contiguous.
        bias_ptr: (F,); not read unless BIASED.
        out_ptr: (B, F) result, the last dim contiguous.
        tokens: B.
        outputs: F.
        x_row: Stride of the rows of the inputs.
        out_row: Stride of the rows of the result.
        INPUTS: E.
        ROWS: Rows of the weight that a block multiplies.
        BLOCK_ROWS: Power of two, at least ROWS.
        BLOCK_INPUTS: Inputs of a tile.
        BLOCK_TOKENS: Tokens of a tile.
        BIASED: Whether there is a bias.
        THREADS: Of a block.
        FETCH: Elements that each thread fetches ahead; 0 for none.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    first = tl.program_id(0) * ROWS
    last = tl.minimum(first + ROWS, outputs)
    if (OVERLAP > 0) & (FETCH > 0):
        fetch_ahead(weight_ptr, first, last, INPUTS, BLOCK_ROWS, THREADS, FETCH)
    start_after_others(OVERLAP)
    row, column = first + tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_INPUTS)
    token = (tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)).to(tl.int64)
    in_weight, in_x = (row < last)[:, None], (token < tokens)[:, None]
    weight_tile = weight_ptr + row.to(tl.int64)[:, None] * INPUTS + column[None, :]
    x_tile = x_ptr + token[:, None] * x_row + column[None, :]
    total = tl.zeros([BLOCK_ROWS, BLOCK_TOKENS], tl.float32)
    for start in range(0, INPUTS, BLOCK_INPUTS):
        if INPUTS % BLOCK_INPUTS == 0:
            weight = tl.load(weight_tile, mask=in_weight, other=0.0)
            x = tl.load(x_tile, mask=in_x, other=0.0)
        else:
            inside = (start + column < INPUTS)[None, :]
            weight = tl.load(weight_tile, mask=in_weight & inside, other=0.0)
            x = tl.load(x_tile, mask=in_x & inside, other=0.0)
        if UPCAST:
            weight, x = weight.to(tl.float32), x.to(tl.float32)
        total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
        weight_tile += BLOCK_INPUTS
        x_tile += BLOCK_INPUTS
    if BIASED:
        total += tl.load(bias_ptr + row, mask=row < last, other=0.0).to(tl.float32)[:, None]
    out_at = out_ptr + token[None, :] * out_row + row[:, None]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=(row < last)[:, None] & (token < tokens)[None, :])


def skinny_linear(
    x_BE: torch.Tensor,
    weight_FE: torch.Tensor,
    bias_F: torch.Tensor | None = None,
    out_BF: torch.Tensor | None = None,
    plan: SkinnyPlan | None = None,
) -> torch.Tensor:
    """Multiply as the eager twin does, in one launch.

    By that twin where `skinny_plan` has no cut, or rows of the weight or of the result do not lie one behind the other.

    Args:
        x_BE: (B, E) inputs.
        weight_FE: (F, E).
        bias_F: (F,), or none.
        out_BF: (B, F) where the result is written, of the dtype of the inputs; or none.
        plan: How to cut the weight.

    Returns:
        (B, F): `out_BF`, if given.

    Raises:
        ValueError: If the weight has not E inputs, or `out_BF` is not (B, F).
    """
    shape, dtype = (x_BE.shape[0], weight_FE.shape[0]), storage_dtype(x_BE.dtype)
    if weight_FE.shape[1] != x_BE.shape[1] or (out_BF is not None and out_BF.shape != shape):
        out = "none" if out_BF is None else tuple(out_BF.shape)
        raise ValueError(f"expected x (B, E), a weight (F, E), out (B, F), got {x_BE.shape}, {weight_FE.shape}, {out}")
    in_rows = weight_FE.is_contiguous() and (out_BF is None or out_BF.stride(1) == 1)
    plan = plan or _plan(x_BE, weight_FE)
    if plan is None or not in_rows:
        return by_torch(x_BE, weight_FE, bias_F, out_BF)
    x_BE = x_BE if x_BE.stride(1) == 1 else x_BE.contiguous()
    whole_BF = out_BF if out_BF is not None and out_BF.dtype == dtype else x_BE.new_empty(shape, dtype=dtype)
    _launch(x_BE, weight_FE, None if bias_F is None else bias_F.contiguous(), whole_BF, plan)
    return whole_BF.to(x_BE.dtype) if out_BF is None or out_BF is whole_BF else out_BF.copy_(whole_BF)


def _plan(x_BE: torch.Tensor, weight_FE: torch.Tensor) -> SkinnyPlan | None:
    gpu = x_BE.device
    return skinny_plan(x_BE.shape[0], weight_FE.shape[0], x_BE.element_size(), multiprocessors(gpu), shared_bytes(gpu))


def _launch(
    x_BE: torch.Tensor, weight_FE: torch.Tensor, bias_F: torch.Tensor | None, out_BF: torch.Tensor, plan: SkinnyPlan
) -> None:
    assert plan.rows <= plan.block_rows, plan
    (tokens, inputs), outputs, item_bytes = x_BE.shape, weight_FE.shape[0], x_BE.element_size()
    block_tokens = min(MOST_TOKENS, tile_tokens(tokens))
    # what is fetched begins and ends at multiples of 16 bytes
    aligned = inputs * item_bytes % 16 == weight_FE.data_ptr() % 16 == 0
    skinny_linear_kernel[(triton.cdiv(outputs, plan.rows), triton.cdiv(tokens, block_tokens))](
        x_BE, weight_FE, weight_FE if bias_F is None else bias_F, out_BF, tokens, outputs, x_BE.stride(0),
        out_BF.stride(0), INPUTS=inputs, ROWS=plan.rows, BLOCK_ROWS=plan.block_rows, BLOCK_INPUTS=plan.block_inputs,
        BLOCK_TOKENS=block_tokens, BIASED=bias_F is not None, THREADS=32 * plan.num_warps,
        FETCH=plan.fetch_bytes // item_bytes if aligned else 0, UPCAST=upcasts(x_BE.dtype), num_warps=plan.num_warps,
        num_stages=plan.num_stages, **overlap(x_BE.device, 2))  # fmt: skip
