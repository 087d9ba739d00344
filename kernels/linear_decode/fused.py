"""A linear state read, added to, written and joined with exact attention, in one pass over it.

Blocks own columns of the state, which they write in place, one tile of features after the other, with the next under
way; its norm, which each of them needs, is written elsewhere. Few query heads of a KV head are weighed by
multiplications and sums, many are the rows of one product. A state that nobody has written lately is asked for before
the wait for the kernel before, which made the features.

Shape legend: B batch, H query heads, G KV heads, J = H / G, F features, D head dim,
T features of a tile, L of which all threads hold at once, C columns of a block.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..op import Age
from ..overlap.fused import let_next_begin, overlap, wait_for_others
from ..tiling import multiprocessors, power_of_2
from .eager import Joined
from .tile.fused import held_of, stepped, together

MOST_HELD = 160  # features of which two warps hold 32 columns at once
THREADS, VECTOR = 32, 4  # of a warp, and numbers that each loads at once
MOST_SUMS = 4096  # features of all query heads that are looked at together
SUMMED = 4  # query heads of a KV head that no matrix instruction is worth


@triton.jit
def features_of(q_ptr, k_ptr, line, in_group, pair, feature, FEATURES: tl.constexpr):
    """Load features as they lie.

    Args:
        q_ptr: (B, H, F) features of the queries.
        k_ptr: (B, G, F) features of the row that leaves.
        line: (J,) query heads.
        in_group: Which of these there are.
        pair: Text and KV head.
        feature: (N,) which features.
        FEATURES: F.

    Returns:
        (J, N) the queries', (N,) the row's.
    """
    inside = feature < FEATURES
    q_at = q_ptr + line[:, None] * FEATURES + feature[None, :]
    q = tl.load(q_at, mask=in_group[:, None] & inside[None, :], other=0.0)
    return q, tl.load(k_ptr + pair * FEATURES + feature, mask=inside, other=0.0)


@triton.jit
def stepped_norm(q, k, norm, q_ptr, k_ptr, norm_ptr, new_norm_ptr, line, in_group, pair, part, decay, factor, leaves,
                 FEATURES: tl.constexpr):  # fmt: skip
    """Add the features of the row that leaves to their sums, and weigh these by the queries'.

    Args:
        q: (J, N) the first features of the queries.
        k: (N,) of the row that leaves.
        norm: (N,) the first sums.
        q_ptr: (B, H, F) features of the queries.
        k_ptr: (B, G, F) features of the row.
        norm_ptr: (B, G, F) sums of features.
        new_norm_ptr: (B, G, F) result, by the first part.
        line: (J,) query heads.
        in_group: Which of these there are.
        pair: Text and KV head.
        part: Which columns a block has.
        decay: Of the sums.
        factor: Of the row.
        leaves: Whether there is a row.
        FEATURES: F.

    Returns:
        (J,) sums of weights.
    """
    block: tl.constexpr = norm.shape[0]
    feature, total = tl.arange(0, block), tl.zeros(q.shape, tl.float32)
    for _ in range(0, FEATURES, block):
        new = norm * decay + tl.where(leaves, k.to(tl.float32) * factor, 0.0)
        if part == 0:
            tl.store(new_norm_ptr + pair * FEATURES + feature, new, mask=feature < FEATURES)
        total += q.to(tl.float32) * new[None, :]
        if block < FEATURES:
            feature += block
            norm = tl.load(norm_ptr + pair * FEATURES + feature, mask=feature < FEATURES, other=0.0)
            q, k = features_of(q_ptr, k_ptr, line, in_group, pair, feature, FEATURES)
    return tl.sum(total, 1)


@triton.jit
def linear_decode_kernel(q_ptr, q_log_ptr, k_ptr, k_log_ptr, v_ptr, state_ptr, norm_ptr, scale_ptr, exact_ptr,
                         exact_log_ptr, out_ptr, new_norm_ptr, new_scale_ptr, GROUP: tl.constexpr,
                         FEATURES: tl.constexpr, DIM: tl.constexpr, BLOCK_GROUP: tl.constexpr, COLUMNS: tl.constexpr,
                         TILE: tl.constexpr, LINES: tl.constexpr, HELD: tl.constexpr, BLOCK: tl.constexpr,
                         SUMMED: tl.constexpr, SETTLED: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
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
        TILE: T, features of a tile.
        LINES: L, of them what all threads hold at once.
        HELD: Tiles that are under way before the first is worked on; of the rest one is.
        BLOCK: Power of two, sums of features that are added to at once.
        SUMMED: Whether there is no matrix product.
        SETTLED: Whether the state may be read before the wait.
        OVERLAP: How the launch overlaps others.
    """
    let_next_begin(OVERLAP)
    batch: tl.constexpr = HELD * TILE
    pair, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    member, column = tl.arange(0, BLOCK_GROUP), part * COLUMNS + tl.arange(0, COLUMNS)
    in_group, in_dim = member < GROUP, column < DIM
    line = pair * GROUP + member
    feature, first, start = tl.arange(0, TILE), tl.arange(0, BLOCK), pair * FEATURES
    state_at = (state_ptr + start * DIM) + (feature[:, None] * DIM + column[None, :])
    if not SETTLED:
        wait_for_others(OVERLAP)
    held = ()
    for nth in tl.static_range(HELD):
        # what is added from tile to tile is known when this is compiled
        tile = held_of(state_at + nth * TILE * DIM, feature + nth * TILE, in_dim, FEATURES)
        held += (tile,)  # type: ignore[assignment]
    norm = tl.load(norm_ptr + start + first, mask=first < FEATURES, other=0.0)
    old = tl.load(scale_ptr + pair)
    if SETTLED:
        wait_for_others(OVERLAP)
    # asked for before anything is waited for
    all_q, all_k = features_of(q_ptr, k_ptr, line, in_group, pair, first, FEATURES)
    k_log = tl.load(k_log_ptr + pair)
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
    q_at, k_at = q_ptr + start * GROUP + feature, k_ptr + start + feature
    sums = (tl.zeros([LINES if SUMMED else BLOCK_GROUP, COLUMNS], tl.float32),) * (GROUP if SUMMED else 1)
    if batch < FEATURES:
        rest_at, rest_feature = state_at + batch * DIM, feature + batch
        rest, rest_q_at, rest_k_at = held_of(rest_at, rest_feature, in_dim, FEATURES), q_at + batch, k_at + batch
    for nth in tl.static_range(HELD):
        sums = stepped(held[nth], sums, state_at + nth * TILE * DIM, q_at + nth * TILE, k_at + nth * TILE,
                       feature + nth * TILE, v, decay, factor, leaves, member, in_group, in_dim, GROUP, FEATURES, LINES,
                       SUMMED)  # fmt: skip
    if batch < FEATURES:
        for _ in range(batch, FEATURES, TILE):
            # the next tile is under way while this one is worked on
            after = held_of(rest_at + TILE * DIM, rest_feature + TILE, in_dim, FEATURES)
            sums = stepped(rest, sums, rest_at, rest_q_at, rest_k_at, rest_feature, v, decay, factor, leaves, member,
                           in_group, in_dim, GROUP, FEATURES, LINES, SUMMED)  # fmt: skip
            rest, rest_at, rest_feature = after, rest_at + TILE * DIM, rest_feature + TILE
            rest_q_at, rest_k_at = rest_q_at + TILE, rest_k_at + TILE
    # last, as nothing waits for it
    total = stepped_norm(all_q, all_k, norm, q_ptr, k_ptr, norm_ptr, new_norm_ptr, line, in_group, pair, part, decay,
                         factor, leaves, FEATURES)  # fmt: skip
    if part == 0:
        tl.store(new_scale_ptr + pair, scale)
    acc = together(sums, member, GROUP, SUMMED)
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
        held: The most tiles under way before the first is worked on.
    """

    tile: int
    columns: int
    num_warps: int
    held: int


def cut_of(pairs: int, group: int, features: int, multiprocessor_count: int) -> Cut:
    """Cut the states: few are stepped by narrow blocks, with as much of each under way as registers hold.

    Products have wider ones, whose warps share the queries.

    Args:
        pairs: States of all sequences.
        group: Query heads of a KV head.
        features: F.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The cut.
    """
    if group > SUMMED:
        return Cut(32, 64, 4, 3)
    short = features <= MOST_HELD
    if group == 1 and pairs >= 2 * multiprocessor_count:
        return Cut(32 if short else 64, 64, 4, 3)
    return Cut(32, 32, 2, 5) if short else Cut(32, 64, 4, 7)


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
    age: Age = "new",
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
        age: Of the state, its sums and its factor; if "settled" (see `overlap`) they are read before the wait.
        plan: How to cut the state; chosen from the shape if absent.

    Returns:
        The means, and the state, float32.

    Raises:
        ValueError: If the state is not contiguous; if its sums or factor are not, but settled.
    """
    settled = (state_BGFD, norm_BGF, scale_BG) if age == "settled" else (state_BGFD,)
    if not all(part.is_contiguous() for part in settled):
        raise ValueError(f"expected a contiguous state, got strides {[part.stride() for part in settled]}")
    batch, groups, features, dim = state_BGFD.shape
    group = q_BHF.shape[1] // groups
    plan = plan or cut_of(batch * groups, group, features, multiprocessors(state_BGFD.device))
    columns = min(plan.columns, max(16, power_of_2(dim)))
    summed, lines = group <= SUMMED, max(1, plan.num_warps * THREADS * VECTOR // columns)
    tile = max(lines, min(plan.tile, max(16, power_of_2(features))))
    block_group = power_of_2(group) if summed else max(16, power_of_2(group))
    out = torch.empty(batch, q_BHF.shape[1], dim, dtype=torch.float32, device=state_BGFD.device)
    norm, scale = torch.empty_like(norm_BGF), torch.empty_like(scale_BG)
    given = (q_BHF, q_log_BH, k_BGF, k_log_BG, v_BGD, state_BGFD, norm_BGF, scale_BG, exact_BHD, exact_log_BH)
    linear_decode_kernel[(batch * groups, triton.cdiv(dim, columns))](
        *(part.contiguous() for part in given), out, norm, scale, GROUP=group, FEATURES=features, DIM=dim,
        BLOCK_GROUP=block_group, COLUMNS=columns, TILE=tile, LINES=lines,
        HELD=min(plan.held, triton.cdiv(features, tile)),
        BLOCK=min(256, MOST_SUMS // block_group, power_of_2(features)),
        SUMMED=summed, SETTLED=age == "settled", num_warps=plan.num_warps,
        **overlap(out.device, 2),
    )  # fmt: skip
    return Joined(out, state_BGFD, norm, scale)
