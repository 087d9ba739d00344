"""Rotation, projection and append in one launch: a block holds the query heads of one KV head, and its key.

The query heads of a group and their key are the lines of one product with the basis, whose columns are shared by
several blocks; each writes its columns of the queries, of the key and of the value.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, R leading columns,
W columns kept once more, C columns of sums: D or none.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..interpreter import storage_dtype, upcasts
from ..overlap.fused import overlap, start_after_others
from ..rotate_rows.fused import one_text
from ..tiling import power_of_2

# Columns of one block: a head of 128 is shared by two.
COLUMNS = 64


@triton.jit
def rounded(x, EMULATE: tl.constexpr):
    """Round to bfloat16 where a cast would cut off, as the interpreter's does.

    Args:
        x: float32.
        EMULATE: Whether to.

    Returns:
        float32 that a cast to bfloat16 keeps; `x` itself on a GPU.
    """
    if EMULATE:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x


@triton.jit
def turned(base, stride, line, column, there, cos_ptr, sin_ptr, DIM: tl.constexpr):
    """Load columns of lines, turned by their position (RoPE, halves).

    Args:
        base: Pointer to line 0.
        stride: Stride of the lines.
        line: (L,) numbers of lines.
        column: (C,) numbers of columns.
        there: (L, C), what exists.
        cos_ptr: (D,) cosines.
        sin_ptr: (D,) sines.
        DIM: D.

    Returns:
        (L, C) float32, zeros where nothing is.
    """
    partner = tl.where(column < DIM // 2, column + DIM // 2, column - DIM // 2)
    sign = tl.where(column < DIM // 2, -1.0, 1.0)
    inside = column < DIM
    cos = tl.load(cos_ptr + column, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + column, mask=inside, other=0.0).to(tl.float32) * sign
    own = tl.load(base + line[:, None] * stride + column[None, :], mask=there, other=0.0).to(tl.float32)
    other = tl.load(base + line[:, None] * stride + partner[None, :], mask=there, other=0.0).to(tl.float32)
    return own * cos[None, :] + other * sin[None, :]


@triton.jit
def append_kernel(q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, lead_ptr, rest_ptr, place_ptr, out_ptr, keys_ptr, values_ptr,
                  leads_ptr, sums_ptr, q_batch, k_batch, v_batch, place_batch, keys_batch, keys_head, keys_row,
                  values_batch, values_head, values_row, leads_batch, leads_head, leads_row, leads_column,
                  KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, LEAD: tl.constexpr,
                  WIDTH: tl.constexpr, SUMS: tl.constexpr, BLOCK_LINES: tl.constexpr, BLOCK_DIM: tl.constexpr,
                  BLOCK_OUT: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Write some columns of one (text, KV head); the grid is (B * G, D / BLOCK_OUT).

    Args:
        q_ptr: (B, H, D) queries, those of a text contiguous.
        k_ptr: (B, G, D) keys, those of a text contiguous.
        v_ptr: (B, G, D) values, those of a text contiguous.
        cos_ptr: (B, D) cosines, contiguous.
        sin_ptr: (B, D) sines, contiguous.
        lead_ptr: (G, D, R) leading columns of the basis, contiguous.
        rest_ptr: (G, D, D - R) its other columns, contiguous.
        place_ptr: (B,) row of each text.
        out_ptr: (B, H, D) result, contiguous.
        keys_ptr: Cache of keys, written.
        values_ptr: Cache of values, written.
        leads_ptr: Cache of columns that are kept once more, written; not used if W is 0.
        sums_ptr: (B, G, D) float32, to which the values are added, contiguous; not used without SUMS.
        q_batch: Stride of the queries.
        k_batch: Stride of the keys.
        v_batch: Stride of the values.
        place_batch: Stride of the rows' numbers.
        keys_batch: Stride of the keys.
        keys_head: Stride of the keys.
        keys_row: Stride of the keys.
        values_batch: Stride of the values.
        values_head: Stride of the values.
        values_row: Stride of the values.
        leads_batch: Stride of the columns kept once more.
        leads_head: Stride of the columns kept once more.
        leads_row: Stride of the columns kept once more.
        leads_column: Stride of the columns kept once more; usually 1, for which Triton compiles a kernel of its own.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        LEAD: R; 0: nothing is projected.
        WIDTH: W; 0: nothing is kept once more.
        SUMS: Whether values are added up.
        BLOCK_LINES: Power of two, at least 16 and J + 1.
        BLOCK_DIM: Power of two, at least 16 and D.
        BLOCK_OUT: Columns of a block, a power of two, at least 16.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, part = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    line, out = tl.arange(0, BLOCK_LINES), part * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    cos_ptr += batch * DIM
    sin_ptr += batch * DIM
    q_lines = q_ptr + batch * q_batch + head * GROUP * DIM
    k_line = k_ptr + batch * k_batch + head * DIM
    is_query, is_key = (line < GROUP)[:, None], (line == GROUP)[:, None]
    kind = out_ptr.dtype.element_ty
    if LEAD > 0:
        column = tl.arange(0, BLOCK_DIM)
        in_dim = (column < DIM)[None, :]
        x = turned(q_lines, DIM, line, column, is_query & in_dim, cos_ptr, sin_ptr, DIM)
        x += turned(k_line, 0, line, column, is_key & in_dim, cos_ptr, sin_ptr, DIM)
        from_lead = lead_ptr + head * DIM * LEAD + column[:, None] * LEAD + out[None, :]
        basis = tl.load(from_lead, mask=(column < DIM)[:, None] & (out < LEAD)[None, :], other=0.0)
        from_rest = rest_ptr + head * DIM * (DIM - LEAD) + column[:, None] * (DIM - LEAD) + (out - LEAD)[None, :]
        beyond = (column < DIM)[:, None] & ((out >= LEAD) & (out < DIM))[None, :]
        rest = tl.load(from_rest, mask=beyond, other=0.0)
        if UPCAST:
            basis, rest = basis.to(tl.float32), rest.to(tl.float32)
            x = rounded(x, UPCAST)
        else:
            x = x.to(basis.dtype)
        # one of the two is zero
        y = tl.dot(x, basis + rest, input_precision="ieee")
    else:
        in_out = (out < DIM)[None, :]
        y = turned(q_lines, DIM, line, out, is_query & in_out, cos_ptr, sin_ptr, DIM)
        y += turned(k_line, 0, line, out, is_key & in_out, cos_ptr, sin_ptr, DIM)
    in_out = (out < DIM)[None, :]
    q_out = out_ptr + pair.to(tl.int64) * GROUP * DIM + line[:, None] * DIM + out[None, :]
    tl.store(q_out, y.to(kind), mask=is_query & in_out)
    place = tl.load(place_ptr + batch * place_batch)
    y = rounded(y, UPCAST)
    stored = keys_ptr.dtype.element_ty
    key = keys_ptr + batch * keys_batch + head * keys_head + place * keys_row + line[:, None] * 0 + out[None, :]
    tl.store(key, y.to(stored), mask=is_key & in_out)
    if WIDTH > 0:
        lead = leads_ptr + batch * leads_batch + head * leads_head + place * leads_row
        at = lead + line[:, None] * 0 + out[None, :] * leads_column
        tl.store(at, y.to(stored), mask=is_key & (out < WIDTH)[None, :])
    v = tl.load(v_ptr + batch * v_batch + head * DIM + out, mask=out < DIM, other=0.0)
    value = values_ptr + batch * values_batch + head * values_head + place * values_row + out
    tl.store(value, v, mask=out < DIM)
    if SUMS:
        total = sums_ptr + pair.to(tl.int64) * DIM + out
        tl.store(total, tl.load(total, mask=out < DIM, other=0.0) + v.to(tl.float32), mask=out < DIM)


def append_row(
    q_BHD: torch.Tensor,
    k_BGD: torch.Tensor,
    v_BGD: torch.Tensor,
    cos_BD: torch.Tensor,
    sin_BD: torch.Tensor,
    lead_GDR: torch.Tensor,
    rest_GDQ: torch.Tensor,
    place_B: torch.Tensor,
    keys_BGSD: torch.Tensor,
    values_BGSD: torch.Tensor,
    leads_BGSW: torch.Tensor,
    sums_BGC: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn, project and write as the eager twin does, in one launch.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGD: (B, G, D) keys.
        v_BGD: (B, G, D) values.
        cos_BD: (B, D) cosines, both halves alike.
        sin_BD: (B, D) sines, both halves alike.
        lead_GDR: (G, D, R) leading columns of the basis; R = 0: keys are kept as they are.
        rest_GDQ: (G, D, D - R) its other columns.
        place_B: (B,) int64, the row of each text that is written; any stride.
        keys_BGSD: (B, G, S, D), written; any strides, the last dim contiguous.
        values_BGSD: (B, G, S, D), written; any strides, the last dim contiguous.
        leads_BGSW: (B, G, S, W), written: the first W columns of the keys once more; any strides.
        sums_BGC: (B, G, C) float32, contiguous, to which the values are added; C = 0: to none.

    Returns:
        (B, H, D) queries in the basis, the three caches, and the sums.

    Raises:
        ValueError: If the last dim of keys or values is not contiguous, the sums are not, or C is neither 0 nor D.
    """
    check_contiguous_rows(keys_BGSD, values_BGSD)
    if not sums_BGC.is_contiguous() or sums_BGC.shape[2] not in (0, v_BGD.shape[2]):
        raise ValueError(f"expected contiguous sums of D columns or none, got {sums_BGC.shape}, {sums_BGC.stride()}")
    batch, heads, dim = q_BHD.shape
    groups, lead, width = k_BGD.shape[1], lead_GDR.shape[2], leads_BGSW.shape[3]
    out_BHD = q_BHD.new_empty(batch, heads, dim, dtype=storage_dtype(q_BHD.dtype))
    # a basis, a cache or sums of no columns have no address that a kernel could be given
    filled = (part.contiguous() if lead else q_BHD for part in (lead_GDR, rest_GDQ))
    leads, sums = leads_BGSW if width else keys_BGSD, sums_BGC if sums_BGC.shape[2] else q_BHD
    block_out = min(COLUMNS, max(16, power_of_2(dim)))
    q_BHD, k_BGD, v_BGD = map(one_text, (q_BHD, k_BGD, v_BGD))
    append_kernel[(batch * groups, triton.cdiv(dim, block_out))](
        q_BHD, k_BGD, v_BGD, cos_BD.contiguous(), sin_BD.contiguous(), *filled, place_B, out_BHD, keys_BGSD,
        values_BGSD, leads, sums, q_BHD.stride(0), k_BGD.stride(0), v_BGD.stride(0), place_B.stride(0),
        *keys_BGSD.stride()[:3], *values_BGSD.stride()[:3], *leads.stride(),
        KV_HEADS=groups, GROUP=heads // groups, DIM=dim, LEAD=lead, WIDTH=width,
        SUMS=sums_BGC.shape[2] > 0,
        BLOCK_LINES=max(16, power_of_2(heads // groups + 1)), BLOCK_DIM=max(16, power_of_2(dim)), BLOCK_OUT=block_out,
        UPCAST=upcasts(q_BHD.dtype), num_warps=4, **overlap(q_BHD.device),
    )  # fmt: skip
    return out_BHD.to(q_BHD.dtype), keys_BGSD, values_BGSD, leads_BGSW, sums_BGC
