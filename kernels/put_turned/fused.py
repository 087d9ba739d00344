"""A few rows turned by rotary angles and written over rows of a cache, in one launch.

Shape legend: B batch, G KV heads, E rows, S rows in the cache, D head dim, R turned dims, L lines of a tile.
"""

import torch
import triton
import triton.language as tl

from ..append_row.fused import rounded
from ..dense_decode.fused import check_contiguous_rows
from ..interpreter import upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import power_of_2
from .eager import check_rows

TILE = 2048  # elements of half a row that a block holds


@triton.jit
def put_turned_kernel(x_ptr, cos_ptr, sin_ptr, place_ptr, cache_ptr, rows, x_batch, x_head, x_row, place_batch,
                      place_row, cache_batch, cache_head, cache_row, DIM: tl.constexpr, WIDTH: tl.constexpr,
                      BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr, LINES: tl.constexpr,
                      EMULATE: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Turn and write some rows of one head; the grid is (tiles of E, G, B).

    Args:
        x_ptr: Rows; any strides, the last dim contiguous.
        cos_ptr: (B, E, R) cosines, contiguous.
        sin_ptr: (B, E, R) sines, contiguous.
        place_ptr: (B, E) rows of the cache, -1 for none.
        cache_ptr: Cache, written; any strides, the last dim contiguous.
        rows: E.
        x_batch: Stride of the rows.
        x_head: Stride of the rows.
        x_row: Stride of the rows.
        place_batch: Stride of the places.
        place_row: Stride of the places.
        cache_batch: Stride of the cache.
        cache_head: Stride of the cache.
        cache_row: Stride of the cache.
        DIM: D.
        WIDTH: R.
        BLOCK_HALF: Power of two, at least R / 2.
        BLOCK_REST: Power of two, at least D - R; 0 if that is none.
        LINES: L.
        EMULATE: Round to bfloat16 as a GPU does.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    column = tl.arange(0, BLOCK_HALF)
    kind = cache_ptr.dtype.element_ty
    place = tl.load(place_ptr + batch * place_batch + line * place_row, mask=line < rows, other=-1).to(tl.int64)
    written = place >= 0
    inside = written[:, None] & (column < WIDTH // 2)[None, :]
    source = x_ptr + batch * x_batch + head * x_head + line[:, None] * x_row
    target = cache_ptr + batch * cache_batch + head * cache_head + place[:, None] * cache_row
    at = (batch * rows + line)[:, None] * WIDTH + column[None, :]
    first = tl.load(source + column[None, :], mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + WIDTH // 2 + column[None, :], mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + column[None, :], rounded(first * cos - second * sin, EMULATE).to(kind), mask=inside)
    other = rounded(second * cos + first * sin, EMULATE).to(kind)
    tl.store(target + WIDTH // 2 + column[None, :], other, mask=inside)
    if BLOCK_REST > 0:
        rest = tl.arange(0, BLOCK_REST)
        here = written[:, None] & (rest < DIM - WIDTH)[None, :]
        same = tl.load(source + WIDTH + rest[None, :], mask=here, other=0.0)
        tl.store(target + WIDTH + rest[None, :], same, mask=here)


def put_turned(
    x_BGED: torch.Tensor,
    cos_BER: torch.Tensor,
    sin_BER: torch.Tensor,
    place_BE: torch.Tensor,
    cache_BGSD: torch.Tensor,
) -> torch.Tensor:
    """Turn and write as the eager twin does.

    Args:
        x_BGED: (B, G, E, D) rows; any strides, the last dim contiguous.
        cos_BER: (B, E, R) cosines, both halves alike.
        sin_BER: (B, E, R) sines, both halves alike.
        place_BE: (B, E) int64, the row of the cache that each is written over; -1: it is not. Any strides.
        cache_BGSD: (B, G, S, D), written; any strides, the last dim contiguous.

    Returns:
        The cache.

    Raises:
        ValueError: As the eager twin, or if the last dim of rows or cache is not contiguous.
    """
    check_rows(x_BGED, cos_BER, sin_BER, place_BE, cache_BGSD)
    check_contiguous_rows(x_BGED, cache_BGSD)
    batch, heads, rows, dim = x_BGED.shape
    width = cos_BER.shape[2]
    half, rest = max(1, power_of_2(width // 2)), power_of_2(dim - width) if dim > width else 0
    lines = min(power_of_2(rows), max(1, TILE // max(half, rest)))
    put_turned_kernel[(triton.cdiv(rows, lines), heads, batch)](
        x_BGED, cos_BER.contiguous(), sin_BER.contiguous(), place_BE, cache_BGSD, rows, *x_BGED.stride()[:3],
        *place_BE.stride(), *cache_BGSD.stride()[:3], DIM=dim, WIDTH=width, BLOCK_HALF=half, BLOCK_REST=rest,
        LINES=lines, EMULATE=upcasts(x_BGED.dtype), num_warps=1 if lines * half <= 512 else 4,
        **overlap(x_BGED.device),
    )  # fmt: skip
    return cache_BGSD
