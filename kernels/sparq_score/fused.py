"""SparQ's weights: the components are chosen on chip, and only these are read, each a contiguous row of the cache.

Two launches. The first scores, keeping each block's maximum and sum of weights; the second sums the weights over the
group. Scores are written once and read once, and stay scores: whoever needs a head's weights takes those of few rows.

Rows lie side by side in memory, and a load is as wide as its mask is known to be constant: keys are read from the last
multiple of 16 bytes before the first visible row to the first one behind the last, and what is hidden there is dropped
after the product.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, R components, X splits.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import SHORT_ROWS, TILE_BYTES, Plan, choose_splits, multiprocessors, power_of_2

LOG2_E = tl.constexpr(1.4426950408889634)
# Each block chooses the components anew, which takes it as long as so many tiles.
START_TILES = 8


@triton.jit
def sparq_score_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, score_ptr, sums_ptr, scale, rows, q_batch, q_head, k_batch,
                       k_head, k_component, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
                       COMPONENTS: tl.constexpr, SPLITS: tl.constexpr, TILES: tl.constexpr, ALIGN: tl.constexpr,
                       BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
                       BLOCK_COMPONENTS: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Score a run of tiles of one (sequence, KV head); the grid is (B * G, X).

    Args:
        q_ptr: Queries.
        k_ptr: Keys by component.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        score_ptr: (B, H, S) float32 result.
        sums_ptr: (B * H, X, 2) float32 result: largest score, sum of exp(score - it).
        scale: Factor of the whole products.
        rows: S.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_component: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        COMPONENTS: R.
        SPLITS: X.
        TILES: Tiles of one block.
        ALIGN: Rows that are loaded together: every component begins at a multiple of so many, and ends at one.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 16 and J.
        BLOCK_DIM: Power of two, at least D.
        BLOCK_COMPONENTS: Power of two, at least 16 and R.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, split = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    lo, hi = tl.load(lo_ptr + batch), tl.load(hi_ptr + batch)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    in_group = (member < GROUP)[:, None]
    q_rows = q_ptr + batch * q_batch + (head * GROUP + member)[:, None] * q_head
    whole = tl.load(q_rows + column[None, :], mask=in_group & (column < DIM)[None, :], other=0.0).to(tl.float32)
    size = tl.where(column < DIM, tl.sum(tl.abs(whole), 0), -1.0)
    # the place of each component among all, by counting those before it
    ahead = (size[None, :] > size[:, None]) | ((size[None, :] == size[:, None]) & (column[None, :] < column[:, None]))
    place = tl.sum(ahead.to(tl.int32), 1)
    slot = tl.arange(0, BLOCK_COMPONENTS)
    component = tl.sum(tl.where(place[None, :] == slot[:, None], column[None, :], 0), 1)
    chosen = slot < COMPONENTS
    q = tl.load(q_rows + component[None, :], mask=in_group & chosen[None, :], other=0.0)
    held = tl.sum(tl.where(place < COMPONENTS, tl.abs(whole), 0.0), 1)
    part = tl.where(held > 0.0, held, 1.0) / tl.where(held > 0.0, tl.sum(tl.abs(whole), 1), 1.0)
    factor = scale * tl.rsqrt(part)
    reach, begin = tl.cdiv(hi, ALIGN) * ALIGN, lo // ALIGN * ALIGN
    first = split * TILES * BLOCK_ROWS
    k_tile = k_ptr + batch * k_batch + head * k_head + component.to(tl.int64)[:, None] * k_component
    out = score_ptr + pair.to(tl.int64) * GROUP * rows + member.to(tl.int64)[:, None] * rows
    top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    if UPCAST:
        q = q.to(tl.float32)
    for tile in range(first, tl.minimum(first + TILES * BLOCK_ROWS, rows), BLOCK_ROWS):
        at = tile + row
        seen = (at >= lo) & (at < hi)
        near = (at >= begin) & (at < reach)
        # keys pass through the second cache, and leave it to the scores, which are read again
        inside = chosen[:, None] & near[None, :]
        k = tl.load(k_tile + at[None, :], mask=inside, other=0.0, eviction_policy="evict_first")
        if UPCAST:
            k = k.to(tl.float32)
        score = tl.dot(q, k, input_precision="ieee") * factor[:, None]
        score = tl.where(seen[None, :] & in_group, score, float("-inf"))
        tl.store(out + at[None, :], score, mask=in_group & (at < rows)[None, :], eviction_policy="evict_last")
        new_top = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp2((top - base) * LOG2_E) + tl.sum(tl.exp2((score - base[:, None]) * LOG2_E), 1)
        top = new_top
    sums = sums_ptr + ((pair * GROUP + member) * SPLITS + split) * 2
    tl.store(sums, top, mask=member < GROUP)
    tl.store(sums + 1, total, mask=member < GROUP)


@triton.jit
def sparq_score_rank_kernel(score_ptr, sums_ptr, lo_ptr, hi_ptr, local_ptr, rank_ptr, lse_ptr, rows,
                            KV_HEADS: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                            BLOCK_GROUP: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
                            OVERLAP: tl.constexpr):  # fmt: skip
    """Sum the weights of some rows over the group; the grid is (B * G, S / BLOCK_ROWS).

    Args:
        score_ptr: (B, H, S) float32.
        sums_ptr: (B * H, X, 2) float32: largest score, sum of exp(score - it).
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        local_ptr: (B,) how many of the last visible rows are forced.
        rank_ptr: (B, G, S) float32 result.
        lse_ptr: (B, H) float32 result: log of the sum of exp(score).
        rows: S.
        KV_HEADS: G.
        GROUP: J.
        SPLITS: X.
        BLOCK_ROWS: Rows of a block.
        BLOCK_GROUP: Power of two, at least J.
        BLOCK_SPLITS: Power of two, at least X.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    # the pairs that were scored last are still near
    pair = tl.num_programs(0) - 1 - tl.program_id(0)
    batch = pair // KV_HEADS
    member, split = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_SPLITS)
    at = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = (member < GROUP)[:, None] & (at < rows)[None, :]
    # asked for before anything is waited for
    score = tl.load(
        score_ptr + (pair * GROUP + member).to(tl.int64)[:, None] * rows + at[None, :], mask=there, other=float("-inf")
    )
    lo, hi, local = tl.load(lo_ptr + batch), tl.load(hi_ptr + batch), tl.load(local_ptr + batch)
    known = (member < GROUP)[:, None] & (split < SPLITS)[None, :]
    sums = sums_ptr + ((pair * GROUP + member)[:, None] * SPLITS + split[None, :]) * 2
    tops = tl.load(sums, mask=known, other=float("-inf"))
    top = tl.max(tops, 1)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.load(sums + 1, mask=known, other=0.0) * tl.exp2((tops - base[:, None]) * LOG2_E), 1)
    if tl.program_id(1) == 0:
        lse = base + tl.log2(tl.where(total == 0.0, 1.0, total)) / LOG2_E
        lse = tl.where(total == 0.0, float("-inf"), lse)
        tl.store(lse_ptr + pair * GROUP + member, lse, mask=member < GROUP)
    weight = tl.exp2((score - base[:, None]) * LOG2_E) / tl.where(total == 0.0, 1.0, total)[:, None]
    rank = tl.sum(weight, 0)
    rank = tl.where(at >= hi - local, float("inf"), rank)
    rank = tl.where((at >= lo) & (at < hi), rank, float("-inf"))
    tl.store(rank_ptr + pair.to(tl.int64) * rows + at, rank, mask=at < rows)


def sparq_plan(pairs: int, rows: int, components: int, item_bytes: int, multiprocessor_count: int) -> Plan:
    """Cut the scores: two blocks share an SM.

    Args:
        pairs: Independent (sequence, KV head) pairs.
        rows: S.
        components: R.
        item_bytes: Bytes of one element.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The plan.
    """
    most_rows, tile_bytes = (512, 2 * TILE_BYTES) if rows > SHORT_ROWS else (256, TILE_BYTES)
    block_rows = min(most_rows, max(16, tile_bytes // (power_of_2(max(16, components)) * item_bytes)))
    splits = choose_splits(pairs, -(-rows // block_rows), 2 * multiprocessor_count, START_TILES)
    return Plan(block_rows, splits, num_warps=4, num_stages=3)


def aligned_rows(k_BGDS: torch.Tensor) -> int:
    """Count the rows that one load of 16 bytes may take together, wherever a component begins.

    Args:
        k_BGDS: (B, G, D, S) keys by component, the last dim contiguous.

    Returns:
        That many, or 1 where components do not begin at multiples of 16 bytes.
    """
    together = 16 // k_BGDS.element_size()
    places = (*k_BGDS.stride()[:3], k_BGDS.data_ptr() // k_BGDS.element_size())
    # rounded up, the last row must not fall into the next component
    return together if all(place % together == 0 for place in places) else 1


def sparq_score(
    q_BHD: torch.Tensor,
    k_BGDS: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    local_B: torch.Tensor,
    components: int,
    scale: float,
    plan: Plan | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score and rank as the eager twin does, in one read of the chosen components.

    Args:
        q_BHD: (B, H, D) queries, the last dim contiguous.
        k_BGDS: (B, G, D, S) keys by component, the last dim contiguous; fast where components begin at multiples of 16
            bytes.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        local_B: (B,) int32, so many of the last visible rows come before all others.
        components: R.
        scale: Factor of the whole products.
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        rank_BGS, score_BHS and lse_BH as the eager twin.

    Raises:
        ValueError: If the last dim of queries or keys is not contiguous.
    """
    if q_BHD.stride(-1) != 1 or k_BGDS.stride(-1) != 1:
        raise ValueError(f"expected stride 1 in the last dim, got {q_BHD.stride()} and {k_BGDS.stride()}")
    batch, heads, dim = q_BHD.shape
    groups, rows = k_BGDS.shape[1], k_BGDS.shape[3]
    group = heads // groups
    plan = plan or sparq_plan(batch * groups, rows, components, k_BGDS.element_size(), multiprocessors(q_BHD.device))
    made = [(batch, groups, rows), (batch, heads, rows), (batch, heads), (batch * heads, plan.splits, 2)]
    rank_BGS, score_BHS, lse_BH, sums = (torch.empty(shape, dtype=torch.float32, device=q_BHD.device) for shape in made)
    shared = {"KV_HEADS": groups, "GROUP": group, "SPLITS": plan.splits, **overlap(q_BHD.device)}
    sparq_score_kernel[(batch * groups, plan.splits)](
        q_BHD, k_BGDS, lo_B, hi_B, score_BHS, sums, scale, rows, *q_BHD.stride()[:2],
        *k_BGDS.stride()[:3], DIM=dim, COMPONENTS=components, ALIGN=aligned_rows(k_BGDS),
        TILES=triton.cdiv(triton.cdiv(rows, plan.block_rows), plan.splits), BLOCK_ROWS=plan.block_rows,
        BLOCK_GROUP=max(16, power_of_2(group)), BLOCK_DIM=power_of_2(dim),
        BLOCK_COMPONENTS=max(16, power_of_2(components)), UPCAST=upcasts(q_BHD.dtype), num_warps=plan.num_warps,
        num_stages=plan.num_stages, **shared,
    )  # fmt: skip
    block = max(16, min(1024, 4096 // power_of_2(group), power_of_2(rows)))
    sparq_score_rank_kernel[(batch * groups, triton.cdiv(rows, block))](
        score_BHS, sums, lo_B, hi_B, local_B, rank_BGS, lse_BH, rows, BLOCK_ROWS=block, BLOCK_GROUP=power_of_2(group),
        BLOCK_SPLITS=power_of_2(plan.splits), num_warps=4, **shared,
    )  # fmt: skip
    return rank_BGS, score_BHS, lse_BH
