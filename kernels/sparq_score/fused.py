"""SparQ's weights: the components are chosen on chip, and only these are read, each a contiguous row of the cache.

One launch. Scores stay scores, beside each block's maximum and sum of weights: whoever needs weights has them by these.

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
# Components are put in their places by a product up to these numbers, which bfloat16 has, and bytes of shared memory.
MOST_NUMBERS, MOST_PLACES = 256, 2**17


@triton.jit
def sparq_score_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, score_ptr, part_ptr, scale, rows, q_batch, q_head, k_batch,
                       k_head, k_component, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
                       COMPONENTS: tl.constexpr, SPLITS: tl.constexpr, TILES: tl.constexpr, ALIGN: tl.constexpr,
                       BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
                       BLOCK_COMPONENTS: tl.constexpr, PRODUCT: tl.constexpr, UPCAST: tl.constexpr,
                       OVERLAP: tl.constexpr):  # fmt: skip
    """Score a run of tiles of one (sequence, KV head); the grid is (B * G, X).

    Args:
        q_ptr: Queries.
        k_ptr: Keys by component.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        score_ptr: (B, H, S) float32 result.
        part_ptr: (B * H, X, 2) float32 result: largest score, sum of exp(score - it).
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
        BLOCK_GROUP: Power of two, at least 16 and J, and more than J if PRODUCT.
        BLOCK_DIM: Power of two, at least D.
        BLOCK_COMPONENTS: Power of two, at least 16 and R.
        PRODUCT: Whether components are put in their places by a product.
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
    asked = tl.load(q_rows + column[None, :], mask=in_group & (column < DIM)[None, :], other=0.0)
    whole = asked.to(tl.float32)
    size = tl.where(column < DIM, tl.sum(tl.abs(whole), 0), -1.0)
    # the place of each component among all, by counting those before it
    ahead = (size[None, :] > size[:, None]) | ((size[None, :] == size[:, None]) & (column[None, :] < column[:, None]))
    place = tl.sum(ahead.to(tl.int32), 1)
    slot = tl.arange(0, BLOCK_COMPONENTS)
    chosen = slot < COMPONENTS
    if UPCAST:
        asked = whole
    if PRODUCT:
        # zeros and ones put components in their places, and their numbers, as one head more
        last = (member == BLOCK_GROUP - 1)[:, None]
        numbered = tl.where(last, column[None, :].to(asked.dtype), asked)
        placed = ((place[:, None] == slot[None, :]) & chosen[None, :]).to(asked.dtype)
        put = tl.dot(numbered, placed, input_precision="ieee")
        component = tl.sum(tl.where(last, put, 0.0), 0).to(tl.int32)
        q = tl.where(in_group, put, 0.0).to(asked.dtype)
    else:
        component = tl.sum(tl.where(place[None, :] == slot[:, None], column[None, :], 0), 1)
        q = tl.load(q_rows + component[None, :], mask=in_group & chosen[None, :], other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
    # of a query with NaN no component comes before another, and all numbers are added up in the first place
    component = tl.minimum(component, DIM - 1)
    held = tl.sum(tl.where(place < COMPONENTS, tl.abs(whole), 0.0), 1)
    part = tl.where(held > 0.0, held, 1.0) / tl.where(held > 0.0, tl.sum(tl.abs(whole), 1), 1.0)
    factor = scale * tl.rsqrt(part)
    reach, begin = tl.cdiv(hi, ALIGN) * ALIGN, lo // ALIGN * ALIGN
    first = split * TILES * BLOCK_ROWS
    k_tile = k_ptr + batch * k_batch + head * k_head + component.to(tl.int64)[:, None] * k_component
    out = score_ptr + pair.to(tl.int64) * GROUP * rows + member.to(tl.int64)[:, None] * rows
    top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
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
    parts = part_ptr + ((pair * GROUP + member) * SPLITS + split) * 2
    tl.store(parts, top, mask=member < GROUP)
    tl.store(parts + 1, total, mask=member < GROUP)


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


def by_product(head_dim: int, components: int) -> bool:
    """Tell whether a product puts components in their places: some 800 instructions less, 1 us of 50 at 16384 rows.

    Args:
        head_dim: D.
        components: R.

    Returns:
        Whether a product can be so small, their numbers are exact, and places fit into shared memory in any dtype.
    """
    places = power_of_2(head_dim) * max(16, power_of_2(components))
    return 16 <= head_dim <= MOST_NUMBERS and 4 * places <= MOST_PLACES


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
    components: int,
    scale: float,
    plan: Plan | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score as the eager twin does, in one read of the chosen components.

    Args:
        q_BHD: (B, H, D) queries, the last dim contiguous.
        k_BGDS: (B, G, D, S) keys by component, the last dim contiguous; fast where components begin at multiples of 16
            bytes.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        components: R.
        scale: Factor of the whole products.
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        score_BHS as the eager twin, and part_BHX2 with a part of the rows for each split.

    Raises:
        ValueError: If the last dim of queries or keys is not contiguous.
    """
    if q_BHD.stride(-1) != 1 or k_BGDS.stride(-1) != 1:
        raise ValueError(f"expected stride 1 in the last dim, got {q_BHD.stride()} and {k_BGDS.stride()}")
    batch, heads, dim = q_BHD.shape
    groups, rows = k_BGDS.shape[1], k_BGDS.shape[3]
    group, product = heads // groups, by_product(dim, components)
    plan = plan or sparq_plan(batch * groups, rows, components, k_BGDS.element_size(), multiprocessors(q_BHD.device))
    score_BHS, part_BHX2 = (
        torch.empty(shape, dtype=torch.float32, device=q_BHD.device)
        for shape in ((batch, heads, rows), (batch, heads, plan.splits, 2))
    )
    sparq_score_kernel[(batch * groups, plan.splits)](
        q_BHD, k_BGDS, lo_B, hi_B, score_BHS, part_BHX2, scale, rows, *q_BHD.stride()[:2], *k_BGDS.stride()[:3],
        KV_HEADS=groups, GROUP=group, DIM=dim, COMPONENTS=components, SPLITS=plan.splits,
        TILES=triton.cdiv(triton.cdiv(rows, plan.block_rows), plan.splits), ALIGN=aligned_rows(k_BGDS),
        BLOCK_ROWS=plan.block_rows, BLOCK_GROUP=max(16, power_of_2(group + product)), BLOCK_DIM=power_of_2(dim),
        BLOCK_COMPONENTS=max(16, power_of_2(components)), PRODUCT=product, UPCAST=upcasts(q_BHD.dtype),
        num_warps=plan.num_warps, num_stages=plan.num_stages, **overlap(q_BHD.device),
    )  # fmt: skip
    return score_BHS, part_BHX2
