"""The gradient of landmark attention by what its first kernel notes of each row and block; see `of_sums/fused.py`.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), S key rows,
D head dim, C rows of a block, X blocks of a text, P pairs of a text and a KV head that are gone through at once, A all
pairs, N = J * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..dense_decode.fused import LOG2_E
from ..interpreter import storage_dtype, upcasts
from ..landmark_attention.fused import check_fused, outer_strides
from ..many_rows import Tiles, tiles_of
from ..tiling import power_of_2
from .of_rows.fused import row_products
from .of_sums.fused import key_sums_kernel, query_sums_kernel

MOST_BYTES = 2**29  # of what is noted

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Notes:
    """What the kernel over queries tells the one over keys.

    Attributes:
        bias_PXJT: (P, X, J, T) float32; what a score, times log2(e), gets before its power of two is a weight.
        mean_PXJT: (P, X, J, T) float32; the weighted mean of dO V^T in the block.
        land_PXJT: (P, X, J, T); gradient of the landmark's logit, 0 where a row does not see the landmark.
    """

    bias_PXJT: torch.Tensor
    mean_PXJT: torch.Tensor
    land_PXJT: torch.Tensor

    @classmethod
    def room_for(cls, q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, block: int) -> Notes:
        """Make room for as many pairs as a bound has, at least one."""
        (batch, heads, new, _), (groups, rows) = q_BHTD.shape, k_BGSD.shape[1:3]
        dtype, each = storage_dtype(q_BHTD.dtype), (-(-rows // block), heads // groups, new)
        shape = (max(1, min(batch * groups, MOST_BYTES // pair_bytes(q_BHTD, k_BGSD, block))), *each)
        bias, mean = (q_BHTD.new_empty(shape, dtype=torch.float32) for _ in range(2))
        return cls(bias, mean, q_BHTD.new_zeros(shape, dtype=dtype))  # nothing is written of a block that comes later


def pair_bytes(q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, block: int) -> int:
    """Bytes that are noted of one text and KV head; they grow with T x S."""
    each = -(-k_BGSD.shape[2] // block) * (q_BHTD.shape[1] // k_BGSD.shape[1]) * q_BHTD.shape[2]
    return each * (8 + storage_dtype(q_BHTD.dtype).itemsize)


def suits(q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, block: int) -> bool:
    """Tell where notes were the faster way on an H200: not where their launches take longer than the work.

    Args:
        q_BHTD: (B, H, T, D) queries.
        k_BGSD: (B, G, S, D) keys.
        block: C.

    Returns:
        Whether they are; with blocks of up to 64 rows odd lengths were slower, too, as were wide heads in part. Never
        where one pair's notes are larger than the bound, nor for blocks below 16 rows, whose notes are the largest.
    """
    batch, heads, new, dim = q_BHTD.shape
    if not 16 <= block <= 128 or dim > 128 or pair_bytes(q_BHTD, k_BGSD, block) > MOST_BYTES:
        return False
    if block > 64:
        return batch * heads * new >= 2**17
    return dim <= 64 and new % 8 == 0 and batch * heads * new >= 2**18


def landmark_backward(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    out_BHTD: torch.Tensor,
    lse_BHT: torch.Tensor,
    grad_BHTD: torch.Tensor,
    block: int,
    scale: float,
    plans: tuple[Tiles, Tiles] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Differentiate one text a sequence, given what the forward pass returned.

    Args:
        q_BHTD: (B, H, T, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        out_BHTD: (B, H, T, D) the output.
        lse_BHT: (B, H, T) float32 log of the rows' sums of weights.
        grad_BHTD: (B, H, T, D) gradient of the output.
        block: C.
        scale: Factor of the scores.
        plans: How to cut the kernels over queries and over keys; chosen from the shape if absent.

    Returns:
        The gradients of q, k and v, in their dtypes.

    Raises:
        ValueError: As `landmark_attention`.
    """
    check_fused(q_BHTD, k_BGSD, v_BGSD, block, scale, None)
    grad_BHTD = grad_BHTD if grad_BHTD.stride(-1) == 1 else grad_BHTD.contiguous()
    tensors, sums = (q_BHTD, k_BGSD, v_BGSD, grad_BHTD), (lse_BHT * LOG2_E, row_products(out_BHTD, grad_BHTD))
    dq, dk, dv = (x.new_empty(x.shape, dtype=storage_dtype(x.dtype)) for x in tensors[:3])
    of_queries, of_keys = plans or _plans(block, q_BHTD.element_size(), q_BHTD.shape[3])
    notes, count = Notes.room_for(q_BHTD, k_BGSD, block), k_BGSD.shape[0] * k_BGSD.shape[1]
    q_rows = q_BHTD.reshape(count, -1, q_BHTD.shape[3]).to(dk.dtype)
    for first in range(0, count, len(notes.bias_PXJT)):
        pairs = range(first, min(first + len(notes.bias_PXJT), count))
        _of_queries(tensors, sums, dq, notes, pairs, block, scale, of_queries)
        _of_keys(tensors, dk, dv, notes, pairs, block, scale, of_keys)
        _of_landmarks(q_rows, dk, notes, pairs, block, scale)
    return dq.to(q_BHTD.dtype), dk.to(k_BGSD.dtype), dv.to(v_BGSD.dtype)


def _plans(block: int, item_bytes: int, head_dim: int) -> tuple[Tiles, Tiles]:
    stages = 3 if head_dim <= 64 else 2
    # 128 rows of a tile, with 64 columns or a block of up to 128
    cuts = Tiles(128 if block <= 64 else 256, 64, 8, stages), Tiles(64, 64, 4, stages)
    of_queries, of_keys = (tiles_of(cut, item_bytes, head_dim) for cut in cuts)
    return of_queries, of_keys


def _of_queries(
    tensors: Tensors,
    sums: tuple[torch.Tensor, torch.Tensor],
    dq: torch.Tensor,
    notes: Notes,
    pairs: range,
    block: int,
    scale: float,
    plan: Tiles,
) -> None:
    """Write the gradients of the pairs' queries, and the notes."""
    q, k = tensors[:2]
    heads, group, (new, rows) = q.shape[1], q.shape[1] // k.shape[1], (q.shape[2], k.shape[2])
    # fewer rows of a tile where a block is wider than the plan's keys
    tile_rows = max(16, plan.queries * plan.keys // max(plan.keys, power_of_2(block)))
    query_sums_kernel[(-(-new // tile_rows), len(pairs) * group)](
        *tensors, *sums, dq, notes.bias_PXJT, notes.mean_PXJT, notes.land_PXJT, scale, scale * LOG2_E,
        pairs.start * group, new, rows, -(-rows // block), *outer_strides(*tensors), HEADS=heads, M=tile_rows,
        **_shape(q, k, block, plan),
    )  # fmt: skip


def _of_keys(
    tensors: Tensors,
    dk: torch.Tensor,
    dv: torch.Tensor,
    notes: Notes,
    pairs: range,
    block: int,
    scale: float,
    plan: Tiles,
) -> None:
    """Write the gradients of the pairs' values, and of their keys but the landmarks'."""
    q, k = tensors[:2]
    new, rows, how = q.shape[2], k.shape[2], _shape(q, k, block, plan)
    parts = max(1, how["PB"] // plan.keys)
    how["PB"] //= parts
    # whether every tile of queries that no key of a range comes after is whole
    ends = (rows, plan.keys, block * max(1, plan.keys // block))
    key_sums_kernel[(-(-rows // (how["NB"] * block)) * parts, len(pairs))](
        *tensors, notes.bias_PXJT, notes.mean_PXJT, dk, dv, scale, scale * LOG2_E, pairs.start, new, rows,
        -(-rows // block), *outer_strides(*tensors), KV_HEADS=k.shape[1], M=plan.queries, PARTS=parts,
        WHOLE=int(rows == new and not any(n % plan.queries for n in ends)), **how,
    )  # fmt: skip


def _of_landmarks(
    q_AND: torch.Tensor, dk_BGSD: torch.Tensor, notes: Notes, pairs: range, block: int, scale: float
) -> None:
    """Write the gradients of the pairs' landmarks: one product of what was noted and the queries."""
    rows, some = dk_BGSD.shape[2], slice(pairs.start, pairs.stop)
    land_PXN = notes.land_PXJT[: len(pairs)].flatten(2)[:, : rows // block]
    marks_PXD = dk_BGSD.flatten(0, 1)[some, block - 1 :: block]
    marks_PXD.copy_((land_PXN @ q_AND[some]) * scale)


def _shape(q: torch.Tensor, k: torch.Tensor, block: int, plan: Tiles) -> dict[str, Any]:
    padded = power_of_2(block)
    return {
        "GROUP": q.shape[1] // k.shape[1], "DIM": q.shape[3], "BLOCK_DIM": max(16, power_of_2(q.shape[3])),
        "NB": max(1, plan.keys // padded), "PB": padded, "C": block, "UPCAST": upcasts(q.dtype),
        "num_warps": plan.num_warps, "num_stages": plan.num_stages,
    }  # fmt: skip
