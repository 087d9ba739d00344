"""A linear layer of few tokens at the rate at which its weight can be read.

Rows of the weight are the long side of the product, tokens the short one. Each block has an even share of the rows, so
that all end at once. The weight is the same in every step: while the kernel before still runs, blocks that have found
room fetch the beginning of their rows into L2.

Shape legend: B tokens, E inputs, F outputs.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import storage_dtype, upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import multiprocessors
from .cut import SkinnyPlan, skinny_plan, tile_tokens


@triton.jit
def fetch_ahead(weight_ptr, first, last, begin, end, INPUTS: tl.constexpr, BLOCK_ROWS: tl.constexpr, THREADS: tl.constexpr,
                FETCH: tl.constexpr):  # fmt: skip
    """Fetch the beginning of some rows into L2, each thread a piece of one.

    Args:
        weight_ptr: (F, E), contiguous, rows aligned to 16 bytes.
        first: The first row.
        last: One past the last row.
        begin: The first input.
        end: One past the last input.
        INPUTS: E.
        BLOCK_ROWS: Power of two, at least as many as the rows.
        THREADS: Of a block.
        FETCH: Elements of a piece.
    """
    thread = tl.arange(0, THREADS)
    row, start = first + thread % BLOCK_ROWS, begin + thread // BLOCK_ROWS * FETCH
    size = tl.where(row < last, tl.minimum(end - start, FETCH), 0) * weight_ptr.dtype.element_ty.primitive_bitwidth // 8
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
                         INPUTS: tl.constexpr, SHARE: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                         BLOCK_INPUTS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BIASED: tl.constexpr,
                         EVEN: tl.constexpr, THREADS: tl.constexpr, FETCH: tl.constexpr, UPCAST: tl.constexpr,
                         OVERLAP: tl.constexpr):  # fmt: skip
    """Multiply some rows of the weight with some tokens; the grid is (F / ROWS, B / BLOCK_TOKENS, E / SHARE).

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
        SHARE: Inputs of a block.
        ROWS: Rows of the weight that a block multiplies.
        BLOCK_ROWS: Power of two, at least ROWS.
        BLOCK_INPUTS: Inputs of a tile.
        BLOCK_TOKENS: Tokens of a tile.
        BIASED: Whether there is a bias.
        EVEN: Whether every block has whole tiles of inputs.
        THREADS: Of a block.
        FETCH: Elements that each thread fetches ahead; 0 for none.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    first = tl.program_id(0) * ROWS
    last = tl.minimum(first + ROWS, outputs)
    begin = tl.program_id(2) * SHARE
    end = tl.minimum(begin + SHARE, INPUTS)
    if (OVERLAP > 0) & (FETCH > 0):
        fetch_ahead(weight_ptr, first, last, begin, end, INPUTS, BLOCK_ROWS, THREADS, FETCH)
    start_after_others(OVERLAP)
    row, column = first + tl.arange(0, BLOCK_ROWS), begin + tl.arange(0, BLOCK_INPUTS)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    in_weight, in_x = (row < last)[:, None], (token < tokens)[:, None]
    weight_tile = weight_ptr + row.to(tl.int64)[:, None] * INPUTS + column[None, :]
    x_tile = x_ptr + token[:, None] * x_row + column[None, :]
    total = tl.zeros([BLOCK_ROWS, BLOCK_TOKENS], tl.float32)
    for start in range(0, SHARE, BLOCK_INPUTS):
        if EVEN:
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
    out_at = out_ptr + tl.program_id(2).to(tl.int64) * tokens * out_row + token[None, :] * out_row + row[:, None]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=(row < last)[:, None] & (token < tokens)[None, :])


def skinny_linear(
    x_BE: torch.Tensor,
    weight_FE: torch.Tensor,
    bias_F: torch.Tensor | None = None,
    out_BF: torch.Tensor | None = None,
    plan: SkinnyPlan | None = None,
) -> torch.Tensor:
    """Multiply as the eager twin does, in one launch.

    Args:
        x_BE: (B, E) inputs.
        weight_FE: (F, E).
        bias_F: (F,), or none.
        out_BF: (B, F) where the result is written, the last dim contiguous; or none.
        plan: How to cut the weight.

    Returns:
        (B, F): `out_BF`, if given.

    Raises:
        ValueError: If the weight is not contiguous, or the result's last dim.
    """
    if not weight_FE.is_contiguous() or (out_BF is not None and out_BF.stride(1) != 1):
        raise ValueError("expected a contiguous weight, and a result whose last dim is")
    x_BE = x_BE if x_BE.stride(1) == 1 else x_BE.contiguous()
    plan = plan or skinny_plan(x_BE.shape[0], weight_FE.shape[0], x_BE.element_size(), multiprocessors(x_BE.device))
    shape, dtype = (x_BE.shape[0], weight_FE.shape[0]), storage_dtype(x_BE.dtype)
    if plan.splits > 1:
        parts_XBF = x_BE.new_empty(plan.splits, *shape, dtype=torch.float32)
        _launch(x_BE, weight_FE, bias_F, parts_XBF.flatten(0, 1), plan)
        return parts_XBF
    whole_BF = out_BF if out_BF is not None and out_BF.dtype == dtype else x_BE.new_empty(shape, dtype=dtype)
    _launch(x_BE, weight_FE, bias_F, whole_BF, plan)
    return whole_BF.to(x_BE.dtype) if out_BF is None or out_BF is whole_BF else out_BF.copy_(whole_BF)


def _launch(
    x_BE: torch.Tensor, weight_FE: torch.Tensor, bias_F: torch.Tensor | None, out_BF: torch.Tensor, plan: SkinnyPlan
) -> None:
    assert plan.rows <= plan.block_rows, plan
    (tokens, inputs), outputs, bits = x_BE.shape, weight_FE.shape[0], x_BE.element_size()
    block_tokens = tile_tokens(tokens)
    share = triton.cdiv(triton.cdiv(inputs, plan.block_inputs), plan.splits) * plan.block_inputs
    grid = (triton.cdiv(outputs, plan.rows), triton.cdiv(tokens, block_tokens), plan.splits)
    skinny_linear_kernel[grid](
        x_BE, weight_FE, weight_FE if bias_F is None else bias_F, out_BF, tokens, outputs, x_BE.stride(0),
        out_BF.stride(0), INPUTS=inputs, SHARE=share, ROWS=plan.rows, BLOCK_ROWS=plan.block_rows,
        BLOCK_INPUTS=plan.block_inputs, BLOCK_TOKENS=block_tokens, BIASED=bias_F is not None,
        EVEN=share * plan.splits == inputs, THREADS=32 * plan.num_warps, FETCH=plan.fetch_bytes // bits if inputs * bits % 16 == 0 else 0,
        UPCAST=upcasts(x_BE.dtype), num_warps=plan.num_warps, num_stages=plan.num_stages,
        **overlap(x_BE.device))  # fmt: skip
