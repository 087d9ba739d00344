"""A linear state read, added to, written and joined with exact attention, in one pass over it.

Blocks own columns of the state, which they write in place, one tile of features after the other, with the next under
way; its norm, which each of them needs, is written elsewhere. Few query heads of a KV head are weighed by
multiplications and sums, many are the rows of one product.

Shape legend: B batch, H query heads, G KV heads, J = H / G, F features, D head dim.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..overlap.fused import overlap, start_after_others
from ..tiling import multiprocessors, power_of_2
from .eager import Joined

SUMMED = 4  # query heads of a KV head that no matrix instruction is worth


@triton.jit
def tile_of(q_ptr, k_ptr, state_ptr, norm_ptr, pair, feature, line, column, in_group, in_dim, FEATURES: tl.constexpr,
            DIM: tl.constexpr):  # fmt: skip
    """Load all that a tile of features needs.

    Args:
        q_ptr: (B, H, F) features of the queries.
        k_ptr: (B, G, F) features of the row that leaves.
        state_ptr: (B, G, F, D) state.
        norm_ptr: (B, G, F) its sums of features.
        pair: Text and KV head.
        feature: Features of the tile.
        line: Query heads.
        column: Columns of the block.
        in_group: Which query heads there are.
        in_dim: Which columns there are.
        FEATURES: F.
        DIM: D.

    Returns:
        The tile of the state, its norm, the row's features, the queries'.
    """
    inside, own = feature < FEATURES, pair * FEATURES + feature
    state = tl.load(state_ptr + own[:, None] * DIM + column[None, :], mask=inside[:, None] & in_dim[None, :], other=0.0)
    norm = tl.load(norm_ptr + own, mask=inside, other=0.0)
    k = tl.load(k_ptr + own, mask=inside, other=0.0)
    q_at = q_ptr + line[:, None] * FEATURES + feature[None, :]
    return state, norm, k, tl.load(q_at, mask=in_group[:, None] & inside[None, :], other=0.0)


@triton.jit
def linear_decode_kernel(q_ptr, q_log_ptr, k_ptr, k_log_ptr, v_ptr, state_ptr, norm_ptr, scale_ptr, exact_ptr,
                         exact_log_ptr, out_ptr, new_norm_ptr, new_scale_ptr, GROUP: tl.constexpr,
                         FEATURES: tl.constexpr, DIM: tl.constexpr, BLOCK_GROUP: tl.constexpr, COLUMNS: tl.constexpr,
                         TILE: tl.constexpr, SUMMED: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Step some columns of one KV head; the grid is (B * G, D / COLUMNS). All tensors are contiguous.

    Args:
        q_ptr: (B, H, F) features of the queries.
        q_log_ptr: (B, H) logs of their factors.
        k_ptr: (B, G, F) features of the row that leaves.
        k_log_ptr: (B, G) log of its factor.
        v_ptr: (B, G, D) its value.
        state_ptr: (B, G, F, D) state, written.
        norm_ptr: (B, G, F) its sums of features.
        scale_ptr: (B, G) log of its factor.
        exact_ptr: (B, H, D) means over exact rows.
        exact_log_ptr: (B, H) logs of their sums.
        out_ptr: (B, H, D).
        new_norm_ptr: (B, G, F).
        new_scale_ptr: (B, G).
        GROUP: J.
        FEATURES: F.
        DIM: D.
        BLOCK_GROUP: Power of two, at least J, and 16 unless SUMMED.
        COLUMNS: Columns of a block.
        TILE: Features of a tile.
        SUMMED: Whether there is no matrix product.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    member, column = tl.arange(0, BLOCK_GROUP), part * COLUMNS + tl.arange(0, COLUMNS)
    in_group, in_dim = member < GROUP, column < DIM
    line = pair * GROUP + member
    feature = tl.arange(0, TILE)
    state, norm, k, q = tile_of(
        q_ptr, k_ptr, state_ptr, norm_ptr, pair, feature, line, column, in_group, in_dim, FEATURES, DIM
    )
    # asked for before anything is waited for
    old, k_log = tl.load(scale_ptr + pair), tl.load(k_log_ptr + pair)
    value = tl.load(v_ptr + pair * DIM + column, mask=in_dim, other=0.0)
    place, mask = line[:, None] * DIM + column[None, :], in_group[:, None] & in_dim[None, :]
    exact = tl.load(exact_ptr + place, mask=mask, other=0.0).to(tl.float32)
    q_log = tl.load(q_log_ptr + line, mask=in_group, other=0.0)
    exact_log = tl.load(exact_log_ptr + line, mask=in_group, other=0.0)
    scale = tl.maximum(old, k_log)
    decay = tl.where(old > float("-inf"), tl.exp(old - scale), 0.0)
    factor = tl.where(k_log > float("-inf"), tl.exp(k_log - scale), 0.0)
    leaves = k_log > float("-inf")
    v = tl.where(leaves, value.to(tl.float32), 0.0)
    acc, total = tl.zeros([BLOCK_GROUP, COLUMNS], tl.float32), tl.zeros([BLOCK_GROUP], tl.float32)
    for _ in range(0, FEATURES, TILE):
        # the next tile is under way while this one is worked on
        next_state, next_norm, next_k, next_q = tile_of(
            q_ptr, k_ptr, state_ptr, norm_ptr, pair, feature + TILE, line, column, in_group, in_dim, FEATURES, DIM
        )
        row, weight = tl.where(leaves, k.to(tl.float32) * factor, 0.0), q.to(tl.float32)
        new, new_norm = state * decay + row[:, None] * v[None, :], norm * decay + row
        inside, own = feature < FEATURES, pair * FEATURES + feature
        state_at = state_ptr + own[:, None] * DIM + column[None, :]
        tl.store(state_at, new, mask=inside[:, None] & in_dim[None, :])
        if part == 0:
            tl.store(new_norm_ptr + own, new_norm, mask=inside)
        if SUMMED:
            acc += tl.sum(weight[:, :, None] * new[None, :, :], 1)
        else:
            acc = tl.dot(weight, new, acc, input_precision="tf32x3")
        total += tl.sum(weight * new_norm[None, :], 1)
        state, norm, k, q = next_state, next_norm, next_k, next_q
        feature += TILE
    if part == 0:
        tl.store(new_scale_ptr + pair, scale)
    some = total > 0.0
    safe = tl.where(some, total, 1.0)
    log = tl.log(safe) + q_log + scale
    # Without an exact row this is 1, without a state 0: no infinity is subtracted from another.
    joined = tl.where(some, 1.0 / (1.0 + tl.exp(exact_log - tl.where(some, log, 0.0))), 0.0)
    tl.store(out_ptr + place, exact + joined[:, None] * (acc / safe[:, None] - exact), mask=mask)


class Cut(NamedTuple):
    """How a state is cut.

    Attributes:
        tile: Features of a tile.
        columns: Columns of a block.
        num_warps: Warps of a block.
    """

    tile: int
    columns: int
    num_warps: int


def cut_of(pairs: int, group: int, multiprocessor_count: int) -> Cut:
    """Cut the states: one of many is a block's own, row by row; few are shared, a warp to 32 columns.

    Args:
        pairs: States of all sequences.
        group: Query heads of a KV head.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The cut.
    """
    if group > SUMMED:
        return Cut(32, 64, 4)
    if group == 1 and pairs >= 2 * multiprocessor_count:
        return Cut(16, 128, 2)
    return Cut(32, 32, 1)


def linear_decode(
    q_BHF: torch.Tensor,
    q_log_BH: torch.Tensor,
    k_BGF: torch.Tensor,
    k_log_BG: torch.Tensor,
    v_BGD: torch.Tensor,
    state_BGFD: torch.Tensor,
    norm_BGF: torch.Tensor,
    scale_BG: torch.Tensor,
    exact_BHD: torch.Tensor,
    exact_log_BH: torch.Tensor,
    plan: Cut | None = None,
) -> Joined:
    """Step as the eager twin does.

    Args:
        q_BHF: (B, H, F) features of the queries.
        q_log_BH: (B, H) float32 logs of their factors.
        k_BGF: (B, G, F) features of the row that leaves.
        k_log_BG: (B, G) float32 log of its factor; -inf where no row leaves.
        v_BGD: (B, G, D) its value.
        state_BGFD: (B, G, F, D) float32, contiguous, written.
        norm_BGF: (B, G, F) float32 sums of features.
        scale_BG: (B, G) float32 log of the factor that both lack.
        exact_BHD: (B, H, D) means over the exact rows.
        exact_log_BH: (B, H) float32 logs of their sums of weights.
        plan: How to cut the state; chosen from the shape if absent.

    Returns:
        The means, and the state, float32.

    Raises:
        ValueError: If the state is not contiguous.
    """
    if not state_BGFD.is_contiguous():
        raise ValueError(f"expected a contiguous state, got strides {state_BGFD.stride()}")
    batch, groups, features, dim = state_BGFD.shape
    group = q_BHF.shape[1] // groups
    plan = plan or cut_of(batch * groups, group, multiprocessors(state_BGFD.device))
    columns = min(plan.columns, max(16, power_of_2(dim)))
    out = torch.empty(batch, q_BHF.shape[1], dim, dtype=torch.float32, device=state_BGFD.device)
    norm, scale = torch.empty_like(norm_BGF), torch.empty_like(scale_BG)
    given = (q_BHF, q_log_BH, k_BGF, k_log_BG, v_BGD, state_BGFD, norm_BGF, scale_BG, exact_BHD, exact_log_BH)
    linear_decode_kernel[(batch * groups, triton.cdiv(dim, columns))](
        *(part.contiguous() for part in given), out, norm, scale, GROUP=group, FEATURES=features, DIM=dim,
        BLOCK_GROUP=power_of_2(group) if group <= SUMMED else max(16, power_of_2(group)), COLUMNS=columns,
        TILE=min(plan.tile, max(16, power_of_2(features))), SUMMED=group <= SUMMED, num_warps=plan.num_warps,
        **overlap(out.device),
    )  # fmt: skip
    return Joined(out, state_BGFD, norm, scale)
