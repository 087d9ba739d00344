"""Rows of chosen pages and of the page being written, in one launch.

Shape legend: B batch, N sets of pages, J pages wanted at most, K = (J + 1) page rows.
"""

import torch
import triton
import triton.language as tl

from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2

BLOCK = 1024  # rows of a block, at most


@triton.jit
def page_rows_kernel(index_ptr, count_ptr, context_ptr, first_ptr, rows_ptr, rows_count_ptr, width, wanted,
                     SETS: tl.constexpr, PAGE: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                     OVERLAP: tl.constexpr):  # fmt: skip
    """Name some rows of one set; the grid is (B * N, blocks of K).

    Args:
        index_ptr: (B, N, J) int32 pages, contiguous.
        count_ptr: (B, N) int32 valid pages, contiguous.
        context_ptr: (B,) rows of each text, contiguous.
        first_ptr: (B,) first row of each text, contiguous.
        rows_ptr: (B, N, K) int32 result.
        rows_count_ptr: (B, N) int32 result.
        width: K.
        wanted: J.
        SETS: N.
        PAGE: Rows of a page.
        BLOCK_ROWS: Power of two.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    count = tl.load(count_ptr + pair)
    context = tl.load(context_ptr + pair // SETS).to(tl.int32)
    first = tl.load(first_ptr + pair // SETS).to(tl.int32)
    own = tl.maximum(context - 1, 0) // PAGE
    number = slot // PAGE
    page = tl.load(index_ptr + pair * wanted + number, mask=number < count, other=0)
    page = tl.where(number < count, page, own)
    rows = count * PAGE + context - own * PAGE
    row = tl.where(slot < rows, first + page * PAGE + slot % PAGE, -1)
    tl.store(rows_ptr + pair * width + slot, row, mask=slot < width)
    tl.store(rows_count_ptr + pair, rows, mask=tl.program_id(1) == 0)


def page_rows(
    index_BNJ: torch.Tensor, count_BN: torch.Tensor, context_B: torch.Tensor, first_B: torch.Tensor, page: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Name rows as the eager twin does.

    Args:
        index_BNJ: (B, N, J) int32 pages, ascending, all before the last row's own.
        count_BN: (B, N) int32, how many of the J are valid.
        context_B: (B,) integers, rows of each text.
        first_B: (B,) integers, the first row of each text in the cache.
        page: Rows of a page.

    Returns:
        index_BNK, (B, N, K) int32 rows, ascending, -1 past the last; count_BN, (B, N) int32.
    """
    batch, sets, wanted = index_BNJ.shape
    width = (wanted + 1) * page
    rows_BNK = torch.empty(batch, sets, width, dtype=torch.int32, device=index_BNJ.device)
    rows_BN = torch.empty(batch, sets, dtype=torch.int32, device=index_BNJ.device)
    block = min(BLOCK, power_of_2(width))
    page_rows_kernel[(batch * sets, triton.cdiv(width, block))](
        index_BNJ.contiguous(), count_BN.contiguous(), context_B.contiguous(), first_B.contiguous(), rows_BNK, rows_BN,
        width, wanted, SETS=sets, PAGE=page, BLOCK_ROWS=block, num_warps=4, **overlap(index_BNJ.device),
    )  # fmt: skip
    return rows_BNK, rows_BN
