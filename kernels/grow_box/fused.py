"""The box around the keys of the page being written, in one launch.

Shape legend: B batch, G KV heads, S rows in the cache, D head dim, P pages, W = 2 D sides of a box.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2


@triton.jit
def grow_box_kernel(keys_ptr, row_ptr, first_ptr, boxes_ptr, row_stride, first_stride, keys_batch, keys_head, keys_row,
                    boxes_batch, boxes_head, boxes_row, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
                    BLOCK_DIM: tl.constexpr, PAGE: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Grow the box of one head; the grid is (B * G,).

    Args:
        keys_ptr: Keys; any strides, the last dim contiguous.
        row_ptr: (B,) row of each text that was written.
        first_ptr: (B,) first row of each text.
        boxes_ptr: Boxes, written; any strides, the last dim contiguous.
        row_stride: Stride of the rows written, 0 if all texts write the same.
        first_stride: Stride of the first rows.
        keys_batch: Stride of the keys.
        keys_head: Stride of the keys.
        keys_row: Stride of the keys.
        boxes_batch: Stride of the boxes.
        boxes_head: Stride of the boxes.
        boxes_row: Stride of the boxes.
        KV_HEADS: G.
        DIM: D.
        BLOCK_DIM: Power of two, at least D.
        PAGE: Rows of a page.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair = tl.program_id(0)
    batch, head = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    row = tl.load(row_ptr + batch * row_stride).to(tl.int64)
    place = row - tl.load(first_ptr + batch * first_stride).to(tl.int64)
    column = tl.arange(0, BLOCK_DIM)
    inside = column < DIM
    key_at = keys_ptr + batch * keys_batch + head * keys_head + row * keys_row + column
    key = tl.load(key_at, mask=inside, other=0.0).to(tl.float32)
    top_at = boxes_ptr + batch * boxes_batch + head * boxes_head + place // PAGE * boxes_row + column
    top = tl.load(top_at, mask=inside, other=0.0).to(tl.float32)
    bottom = tl.load(top_at + DIM, mask=inside, other=0.0).to(tl.float32)
    begins = place % PAGE == 0
    stored = boxes_ptr.dtype.element_ty
    # a NaN stays one, as in the maximum that torch takes over a whole page
    grown_top = tl.maximum(key, top, propagate_nan=tl.PropagateNan.ALL)
    grown_bottom = tl.minimum(key, bottom, propagate_nan=tl.PropagateNan.ALL)
    tl.store(top_at, tl.where(begins, key, grown_top).to(stored), mask=inside)
    tl.store(top_at + DIM, tl.where(begins, key, grown_bottom).to(stored), mask=inside)


def grow_box(
    keys_BGSD: torch.Tensor, row_B: torch.Tensor, first_B: torch.Tensor, boxes_BGPW: torch.Tensor, page: int
) -> torch.Tensor:
    """Grow as the eager twin does.

    Args:
        keys_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        row_B: (B,) integers, the row of each text that was written; any stride.
        first_B: (B,) integers, the first row of each text; any stride.
        boxes_BGPW: (B, G, P, W) boxes, written; any strides, the last dim contiguous.
        page: Rows of a page.

    Returns:
        The boxes.

    Raises:
        ValueError: If the last dim of keys or boxes is not contiguous.
    """
    check_contiguous_rows(keys_BGSD, boxes_BGPW)
    batch, heads, _, dim = keys_BGSD.shape
    grow_box_kernel[(batch * heads,)](
        keys_BGSD, row_B, first_B, boxes_BGPW, row_B.stride(0), first_B.stride(0), *keys_BGSD.stride()[:3],
        *boxes_BGPW.stride()[:3], KV_HEADS=heads, DIM=dim, BLOCK_DIM=power_of_2(dim), PAGE=page, num_warps=1,
        **overlap(keys_BGSD.device),
    )  # fmt: skip
    return boxes_BGPW
