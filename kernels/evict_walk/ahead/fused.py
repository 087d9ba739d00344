"""The walk by weights made before, of which the next are under way while those of a row are summed.

Some rows at a time are walked over the keys that are held when they begin, side by side, and their own after them: a
column is one key, and what changes is which of them are held.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), t of them at a time, S
key rows, D head dim, N = 1 or G sets of rows, C most keys of a cache, W columns, at least C + t, E query heads of a
set.
"""

import triton
import triton.language as tl

from ...grouped_rows.fused import load_keys

NONE = tl.constexpr(0x7FFFFFFFFFFFFFFF)  # no key: after all others
LATE = tl.constexpr(0x7FFFFFFF)  # of a column that is not held: never old
# Weights are stored times two to this, so that float32 holds those of keys far below one that left: 2^-226 of the best.
RAISED = tl.constexpr(100.0)


@triton.jit
def load_held(k_base, place_base, number_base, at, first, places, width, rows, k_row, DIM: tl.constexpr,
              BLOCK_DIM: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Load some of the keys held, and of the new ones after them.

    Args:
        k_base: Pointer to row 0 of a head.
        place_base: Pointer to the C keys of a set.
        number_base: Pointer to the S token numbers of the set; negative: no key.
        at: First column.
        first: First new key.
        places: C.
        width: C + t.
        rows: S.
        k_row: Stride of the keys.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        N: Columns.
        UPCAST: Cast to float32 after the load.

    Returns:
        (N, BLOCK_DIM), zeros where no key is, and whether there is one.
    """
    column, dim = at + tl.arange(0, N), tl.arange(0, BLOCK_DIM)
    key = tl.load(place_base + column, mask=column < places, other=0)
    key = tl.where(column < places, key, first + column - places)
    there = tl.load(number_base + key, mask=(key < rows) & (column < width), other=-1) >= 0
    mask = there[:, None] & (dim < DIM)[None, :]
    tile = tl.load(k_base + key.to(tl.int64)[:, None] * k_row + dim[None, :], mask=mask, other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile, there


@triton.jit
def weights_kernel(q_ptr, k_ptr, place_ptr, number_ptr, weight_ptr, total_ptr, scale_log2, begin, some, new, rows,
                   places, q_batch, q_head, q_row, k_batch, k_head, k_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
                   SETS: tl.constexpr, WIDE: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr,
                   N: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Weigh the keys held and the new ones for one tile of rows of one head; the grid is (tiles, B * H).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        place_ptr: (B, N, C) which key lies at each place, S none.
        number_ptr: (B, N, S) token numbers; negative: never held, and no part of any sum.
        weight_ptr: (B, H, t, W) weights over that of the best of these keys, times 2^100; 0 of no key, and of those
            that a row does not see, up to the end of its tile.
        total_ptr: (B, H, t) float64 sums of them.
        scale_log2: Factor of the scores, times log2(e).
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        places: C.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: H / G.
        SETS: N of the shapes, 1 or G.
        WIDE: W.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Query rows of a tile.
        N: Keys of a tile.
        UPCAST: Cast to float32 after each load.
    """
    pair, tile, width = tl.program_id(1), tl.program_id(0) * M, some + places
    batch, head = (pair // (KV_HEADS * GROUP)).to(tl.int64), (pair % (KV_HEADS * GROUP)).to(tl.int64)
    group, row, first = head // GROUP, tile + tl.arange(0, M), rows - new + begin
    each = batch * SETS + group * SETS // KV_HEADS
    place_base, number_base = place_ptr + each * places, number_ptr + each * rows
    k_base, q_base = k_ptr + batch * k_batch + group * k_head, q_ptr + batch * q_batch + head * q_head
    q = load_keys(q_base, begin + tile, begin + some, q_row, DIM, BLOCK_DIM, M, UPCAST)
    end, top = places + tl.minimum(tile + M, some), tl.full([M], float("-inf"), tl.float32)
    for at in range(0, end, N):
        k, there = load_held(
            k_base, place_base, number_base, at, first, places, width, rows, k_row, DIM, BLOCK_DIM, N, UPCAST
        )
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        seen = there[None, :] & ((at + tl.arange(0, N))[None, :] <= (places + row)[:, None])
        top = tl.maximum(top, tl.max(tl.where(seen, score, float("-inf")), 1))
    line, total = weight_ptr + (pair.to(tl.int64) * some + row) * WIDE, tl.zeros([M], tl.float64)
    for at in range(0, end, N):
        k, there = load_held(
            k_base, place_base, number_base, at, first, places, width, rows, k_row, DIM, BLOCK_DIM, N, UPCAST
        )
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        column = (at + tl.arange(0, N))[None, :]
        seen = there[None, :] & (column <= (places + row)[:, None])
        weight = tl.where(seen, tl.exp2(score - top[:, None] + RAISED), 0.0)
        tl.store(line[:, None] + column, weight, mask=(row < some)[:, None] & (column < WIDE))
        total += tl.sum(weight.to(tl.float64), 1)
    tl.store(total_ptr + pair.to(tl.int64) * some + row, total, mask=row < some)


@triton.jit
def weigh_again(q_base, k_base, place_base, held, head, end, first, places, q_head, k_head, k_row, scale_log2,
                GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """Weigh the keys held for some heads of one row by their own scores: slow, one head and dim after the other.

    Args:
        q_base: Pointer to the row of head 0 of its sequence.
        k_base: Pointer to key 0 of KV head 0.
        place_base: Pointer to the C keys of the set.
        held: (WIDE,) 1 for the columns that are held, else 0.
        head: First head.
        end: One past the last.
        first: First new key.
        places: C.
        q_head: Stride of the queries.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        scale_log2: Factor of the scores, times log2(e).
        GROUP: Query heads of a KV head.
        DIM: D.
        WIDE: Columns.

    Returns:
        (WIDE,) weights summed over these heads, 0 where nothing is held.
    """
    column, here, sums = tl.arange(0, WIDE), held > 0.0, tl.zeros([WIDE], tl.float32)
    key = tl.load(place_base + column, mask=column < places, other=0)
    at = tl.where(column < places, key, first + column - places).to(tl.int64) * k_row
    for one in range(head, end):
        q_at, k_at = q_base + tl.cast(one, tl.int64) * q_head, k_base + tl.cast(one // GROUP, tl.int64) * k_head
        score = tl.zeros([WIDE], tl.float32)
        for dim in range(DIM):
            k = tl.load(k_at + at + dim, mask=here, other=0.0).to(tl.float32)
            score += tl.load(q_at + dim).to(tl.float32) * k
        score = tl.where(here, score * scale_log2, float("-inf"))
        weight = tl.exp2(score - tl.maximum(tl.max(score, 0), -1e30))
        total = tl.sum(weight, 0)
        sums += weight * (1.0 / tl.where(total == 0.0, 1.0, total))
    return sums


@triton.jit
def walk_ahead_kernel(q_ptr, k_ptr, weight_ptr, mark_ptr, number_ptr, budget_ptr, recent_ptr, place_ptr, after_ptr,
                      count_ptr, until_ptr, last_ptr, scale_log2, begin, some, new, rows, places, carry, share, q_batch,
                      q_head, q_row, k_batch, k_head, k_row, GROUP: tl.constexpr, DIM: tl.constexpr, SETS: tl.constexpr,
                      HEADS: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr, LEAST: tl.constexpr):  # fmt: skip
    """Walk as `walk_rows_kernel` does; the grid is (B * N,).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        weight_ptr: (B, H, t, W) weights over that of the best key of the row, held or not, times 2^100; 0 of no key,
            and of those that a row does not see, up to a multiple of 16 columns.
        mark_ptr: (B, N, S) marks that keys begin with.
        number_ptr: (B, N, S) token numbers; negative: never held.
        budget_ptr: (B, T) most keys held.
        recent_ptr: (B, T) last tokens that stay.
        place_ptr: (B, N, C) which keys are held, in order; S none, behind all others.
        after_ptr: (B, N, C) the same after these rows, written.
        count_ptr: (B, N) keys held; read and written.
        until_ptr: (B, N, S) rows at which keys leave; written for those that do.
        last_ptr: (B, N, S) marks of held keys; read and written.
        scale_log2: Factor of the scores, times log2(e).
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        places: C.
        carry: Factor of marks.
        share: Factor of weights.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        GROUP: Query heads of a KV head.
        DIM: D.
        SETS: N.
        HEADS: E.
        CHUNK: Heads that are weighed at once, a power of two.
        WIDE: W, a power of two.
        LEAST: Sum of the weights of a head below which some may be lost: the row is weighed again.
    """
    pair = tl.program_id(0).to(tl.int64)
    batch, column, each = pair // SETS, tl.arange(0, WIDE), tl.arange(0, CHUNK)
    number_base, last_base, first = number_ptr + pair * rows, last_ptr + pair * rows, rows - new + begin
    now_base, mark_base = number_base + first, mark_ptr + pair * rows + first
    budget_base, recent_base = budget_ptr + batch * new + begin, recent_ptr + batch * new + begin
    key = tl.load(place_ptr + pair * places + column, mask=column < places, other=rows)
    count, here = tl.load(count_ptr + pair), key < rows
    number = tl.load(number_base + key, mask=here, other=LATE)
    mark = tl.load(last_base + key, mask=here, other=0.0)
    held, until = here.to(tl.float32), tl.full([WIDE], -1, tl.int32)
    line = weight_ptr + (pair * HEADS + each.to(tl.int64)) * some * WIDE
    reach = (places + 16) // 16 * 16
    weight_next = tl.load(
        line[:, None] + column[None, :], mask=(each < HEADS)[:, None] & (column < reach)[None, :], other=0.0
    )
    now_next, begun_next = tl.load(now_base), tl.load(mark_base)
    budget_next, recent_next = tl.load(budget_base), tl.load(recent_base)
    q_base, k_base = q_ptr + batch * q_batch + tl.cast(begin, tl.int64) * q_row, k_ptr + batch * k_batch
    for t in range(some):
        own, now, begun, budget, recent = places + t, now_next, begun_next, budget_next, recent_next
        after = tl.minimum(t + 1, some - 1)
        now_next, begun_next = tl.load(now_base + after), tl.load(mark_base + after)
        budget_next, recent_next = tl.load(budget_base + after), tl.load(recent_base + after)
        real, full = now >= 0, count + 1 > budget
        # Marks are not negative, so their bits are ordered as they are; of equal ones the oldest comes first. Which
        # it is, its column tells: the compiler may hold marks twice, summed in another order, and not equal.
        order = (mark.to(tl.int32, bitcast=True).to(tl.int64) << 32) | column.to(tl.int64)
        lowest = tl.min(tl.where(number <= now - recent, order, NONE), 0)
        gone = tl.where((lowest != NONE) & full & real, (lowest & 0xFFFFFFFF).to(tl.int32), -1)
        enters = tl.where(real & ((gone >= 0) | (full == 0)), own, -1)
        leaves, comes = column == gone, column == enters
        number = tl.where(leaves, LATE, tl.where(comes, now, number))
        held = tl.where(leaves, 0.0, tl.where(comes, 1.0, held))
        until, mark = tl.where(leaves, begin + t, until), tl.where(comes, begun, mark)
        count = tl.where(real, tl.minimum(count + 1, tl.maximum(budget, count)), count)
        added = tl.zeros([WIDE], tl.float32)
        for head in range(0, HEADS, CHUNK):
            weight = weight_next
            # What is asked for next: other heads of this row, or the first ones of the next.
            ends = head + CHUNK >= HEADS
            other, row = tl.where(ends, 0, head + CHUNK), tl.where(ends, after, t)
            reach = (places + row + 16) // 16 * 16
            weight_next = tl.load(
                (line + (other * some + row) * WIDE)[:, None] + column[None, :],
                mask=(other + each < HEADS)[:, None] & (column < reach)[None, :],
                other=0.0,
            )
            total = tl.sum(weight * held[None, :], 1)
            least = tl.min(tl.where(head + each < HEADS, total, 1.0), 0)
            if (least < LEAST) & real:
                # Beside a key that left, those held weigh nothing that float32 could tell.
                begins = pair % SETS * HEADS + head
                added += weigh_again(
                    q_base + t * q_row, k_base, place_ptr + pair * places, held, begins,
                    begins + tl.minimum(CHUNK, HEADS - head), first, places, q_head, k_head, k_row, scale_log2, GROUP,
                    DIM, WIDE,
                )  # fmt: skip
            else:
                added += tl.sum(weight * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None], 0)
        mark = tl.where(real, carry * mark + share * added, mark)
    here = held > 0.0
    key = tl.where(column < places, key, first + column - places)
    tl.store(until_ptr + pair * rows + key, until, mask=until >= 0)
    tl.store(last_base + key, mark, mask=here)
    # What is still held, in order, so that of equal marks the oldest stands first again.
    place = tl.cumsum(here.to(tl.int32), 0) - 1
    tl.store(after_ptr + pair * places + place, key, mask=here)
    tl.store(after_ptr + pair * places + column, rows + column * 0, mask=(column >= count) & (column < places))
    tl.store(count_ptr + pair, count)
