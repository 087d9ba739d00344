"""Attention to pages named by bits, in one pass: a tile of keys is named by one or two words of each row.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), S key rows,
D head dim, M tokens of a tile, JP = J padded to a power of two, L = M * JP, N keys of a tile, W words of 32 pages.
"""

import math

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..grouped_rows.fused import load_keys, load_lines, place_of_rows
from ..interpreter import storage_dtype
from ..kth_score.stored.fused import shape_of
from ..many_rows import Tiles, tiles_of
from .eager import BITS

LINES = Tiles(128, 64, 8, 2)
MOST_KEYS = 64  # of a tile: more could take three words


@triton.jit
def attend_chosen_kernel(q_ptr, k_ptr, v_ptr, bits_ptr, first_ptr, out_ptr, lse_ptr, scale_log2, new, rows, words,
                         q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
                         KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
                         M: tl.constexpr, JP: tl.constexpr, N: tl.constexpr, SHARED: tl.constexpr,
                         PAGE: tl.constexpr, TILE_BITS: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Attend from one tile of tokens of one KV head; the grid is (tiles, B * G).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        v_ptr: Values.
        bits_ptr: (B, sets, T, W) words.
        first_ptr: (B,) first row that is no padding.
        out_ptr: (B, H, T, D), contiguous.
        lse_ptr: (B, H, T) log2 of the sums of weights.
        scale_log2: Factor of the scores, times log2(e).
        new: T.
        rows: S.
        words: W.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        v_row: Stride of the values.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Tokens of a tile.
        JP: Lines of a token.
        N: Keys of a tile.
        SHARED: Whether the group chooses one set.
        PAGE: Rows of a page.
        TILE_BITS: As many lowest bits as pages that a tile may touch.
        UPCAST: Cast to float32 after each load.
    """
    pair = tl.program_id(1)
    batch, group = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    begin = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    q_base = q_ptr + batch * q_batch + group * GROUP * q_head
    q = load_lines(q_base, begin, new, q_head, q_row, DIM, BLOCK_DIM, M, JP, GROUP, UPCAST)
    k_base, v_base = k_ptr + batch * k_batch + group * k_head, v_ptr + batch * v_batch + group * v_head
    place, there, token = place_of_rows(pair, begin, new, GROUP, M, JP, 0)
    set_place = place
    if SHARED:
        set_place = pair.to(tl.int64) * new + token
    word_base = bits_ptr + set_place * words
    first, end = tl.load(first_ptr + batch), rows - new + tl.minimum(begin + M, new)
    top, total = tl.full([M * JP], float("-inf"), tl.float32), tl.zeros([M * JP], tl.float32)
    acc = tl.zeros([M * JP, BLOCK_DIM], tl.float32)
    for key in range(first, end, N):
        at = key + tl.arange(0, N)
        bit, low = (at - first) // PAGE, (key - first) // PAGE // 32
        lower = tl.zeros_like(token) + low
        one = tl.load(word_base + lower, mask=there & (lower < words), other=0)
        two = tl.load(word_base + lower + 1, mask=there & (lower + 1 < words), other=0)
        word = tl.where((bit // 32 == low)[None, :], one[:, None], two[:, None])
        keep = (((word >> (bit % 32)[None, :]) & 1) > 0) & (at[None, :] <= (rows - new + token)[:, None])
        # Bits of this tile, and perhaps a neighbour's: cheaper than a sum over what is kept.
        shift = (key - first) // PAGE % 32
        some = ((one >> shift) & TILE_BITS) | tl.where(shift + (N - 1) // PAGE + 2 > 32, two, 0)
        if tl.max((some != 0).to(tl.int32), 0) > 0:
            k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, N, UPCAST)
            score = tl.where(keep, tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2, float("-inf"))
            new_top = tl.maximum(top, tl.max(score, 1))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
            decay, weight = tl.exp2(top - base), tl.exp2(score - base[:, None])
            total = total * decay + tl.sum(weight, 1)
            v = load_keys(v_base, key, end, v_row, DIM, BLOCK_DIM, N, UPCAST)
            acc = tl.dot(weight.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
            top = new_top
    column, safe = tl.arange(0, BLOCK_DIM), tl.where(total == 0.0, 1.0, total)
    out = (acc / safe[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place[:, None] * DIM + column[None, :], out, mask=there[:, None] & (column < DIM)[None, :])
    tl.store(lse_ptr + place, tl.where(total == 0.0, float("-inf"), top + tl.log2(safe)), mask=there)


def chosen_prefill(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    bits_BNTW: torch.Tensor,
    first_B: torch.Tensor,
    page: int,
    scale: float,
    plan: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend as the eager twin does, in one pass.

    Args:
        q_BHTD: (B, H, T, D) queries; any strides, the last dim contiguous, as all tensors with dims.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        bits_BNTW: (B, N, T, W) int32.
        first_B: (B,) int32, first row that is no padding.
        page: Rows of a page.
        scale: Factor of the scores.
        plan: How to cut the work, `queries` being lines; chosen from the shape if absent.

    Returns:
        Output and logs of the sums of weights.

    Raises:
        ValueError: If the last dim of a tensor is not contiguous, or a tile has more than 64 keys.
    """
    check_contiguous_rows(q_BHTD, k_BGSD, v_BGSD)
    (batch, _, new, dim), (groups, rows) = q_BHTD.shape, k_BGSD.shape[1:3]
    shape = shape_of(q_BHTD, groups, bits_BNTW.shape[1], plan or tiles_of(LINES, q_BHTD.element_size(), dim))
    if shape["N"] > MOST_KEYS:
        raise ValueError(f"expected tiles of at most {MOST_KEYS} keys, got {shape['N']}")
    touched = (shape["N"] - 1) // page + 2
    shape["TILE_BITS"] = (1 << touched) - 1 if touched < BITS else -1
    shape["SHARED"] = int(bits_BNTW.shape[1] == groups)
    out = torch.empty(q_BHTD.shape, dtype=storage_dtype(q_BHTD.dtype), device=q_BHTD.device)
    lse = torch.empty(q_BHTD.shape[:3], dtype=torch.float32, device=q_BHTD.device)
    attend_chosen_kernel[(triton.cdiv(new, shape["M"]), batch * groups)](
        q_BHTD, k_BGSD, v_BGSD, bits_BNTW.contiguous(), first_B, out, lse, scale * LOG2_E, new, rows,
        bits_BNTW.shape[3], *q_BHTD.stride()[:3], *k_BGSD.stride()[:3], *v_BGSD.stride()[:3], PAGE=page, **shape,
    )  # fmt: skip
    return out.to(q_BHTD.dtype), lse * math.log(2)
