"""Sets that hold too few rows or too many, and heads whose weights are below float32: several blocks mend each.

A set that is within its bounds costs a few sums. One that is not is scored again, its k-th score is searched as
`select_topk` searches it, and its rows are written anew. Every block counts the sets that are to be mended, so all know
how many blocks share one: with one or few of them up to half as many as the GPU has SMs, with many of them one. They
take their places by a ticket and wait for each other, as blocks of `select_topk.joint` do and for the same reason never
for ever: an SM holds two blocks at least, so four launches at once cannot stall.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, R dims, X segments, W rows of one,
C blocks (chunks) of a set.
"""

import triton
import triton.language as tl

from ...overlap.fused import start_after_others
from ...select_topk.board.fused import FIELD, MASK
from ...select_topk.search.fused import BEYOND, LEAST, ordered_key, score_of
from ..joint.fused import HUGE, LOG2_E, counted_between, rows_before, search_together, share_together
from ..strays.fused import bounds_of, share_alone, shared_by, stray_of, tallied

# Bits by which weights are held below the threshold, and at which they are capped: a million rows that are dropped
# weigh 2^-30 of one that is capped, and as many of these fit into float32.
BELOW, CAP = tl.constexpr(50.0), tl.constexpr(100.0)
# Of a sum that is not less nothing that counts was cut off.
SMALLEST = tl.constexpr(2.0**-60)


@triton.jit
def threshold_of(threshold_ptr, least_ptr, many):
    """Load the threshold of a set; where all rows are wanted, it is one that all exceed.

    Args:
        threshold_ptr: Pointer to it.
        least_ptr: Pointer to the fewest rows that the sequence wants.
        many: Visible rows.

    Returns:
        float32.
    """
    return tl.where(tl.load(least_ptr) >= many, float("-inf"), tl.load(threshold_ptr))


@triton.jit
def base_of(threshold):
    """Choose what weights are held against.

    Args:
        threshold: Of the set.

    Returns:
        Bits, below the threshold; below 0 if it chooses all or nothing.
    """
    finite = (threshold > float("-inf")) & (threshold < float("inf"))
    return tl.where(finite, threshold, 0.0) * LOG2_E - BELOW


@triton.jit
def key_above(threshold):
    """Find what a score must reach to exceed a threshold.

    Args:
        threshold: Any float32; nothing exceeds NaN.

    Returns:
        The key.
    """
    return tl.where(threshold >= float("-inf"), tl.maximum(ordered_key(threshold) + 1, LEAST), BEYOND)


@triton.jit
def products(q, k_set, at, inside, k_row, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, UPCAST: tl.constexpr):
    """Multiply some keys of a set with its queries again, as they were when rows were held against the threshold.

    Args:
        q: (BLOCK_DIM, COLUMNS) queries.
        k_set: Pointer to the set's row 0.
        at: Row numbers.
        inside: Which of them exist.
        k_row: Stride of the rows.
        DIM: R.
        BLOCK_DIM: Power of two, at least 16 and R.
        UPCAST: Cast to float32 after the load.

    Returns:
        (rows, COLUMNS) products; zeros for rows that do not exist.
    """
    column = tl.arange(0, BLOCK_DIM)
    place = k_set + at.to(tl.int64)[:, None] * k_row + column[None, :]
    there = inside[:, None] if DIM == BLOCK_DIM else inside[:, None] & (column < DIM)[None, :]
    k = tl.load(place, mask=there, other=0.0)
    if UPCAST:
        k = k.to(tl.float32)
    return tl.dot(k, q, input_precision="ieee")


@triton.jit
def ranked(q, k_set, ranks, first_row, end, k_row, scale, DIM: tl.constexpr, LINES: tl.constexpr,
           BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Score the rows of a block again.

    Args:
        q: (BLOCK_DIM, COLUMNS) queries.
        k_set: Pointer to the set's row 0.
        ranks: Pointer to the set's scores, written.
        first_row: The block's first row.
        end: One past its last.
        k_row: Stride of the rows.
        scale: Factor of the scores.
        DIM: R.
        LINES: 1 where the group is one head, else COLUMNS.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_DIM: Power of two, at least 16 and R.
        UPCAST: Cast to float32 after each load.

    Returns:
        (LINES,) the best finite score of each head, how many rows can be chosen, and the sum of their scores and of
        the squares of these.
    """
    row = tl.arange(0, BLOCK_ROWS)
    top = tl.full([BLOCK_ROWS, LINES], float("-inf"), tl.float32)
    own = tl.zeros([BLOCK_ROWS], tl.int32)
    sums, squares = tl.zeros([BLOCK_ROWS], tl.float32), tl.zeros([BLOCK_ROWS], tl.float32)
    for tile in range(first_row, end, BLOCK_ROWS):
        at = tile + row
        inside = at < end
        product = products(q, k_set, at, inside, k_row, DIM, BLOCK_DIM, UPCAST)
        rank = tl.max(product, 1) * scale
        tl.store(ranks + at, rank, mask=inside)
        lines = rank[:, None] if LINES == 1 else product * scale
        top = tl.maximum(top, tl.where(inside[:, None], lines, float("-inf")))
        usable = inside & (rank > float("-inf"))
        seen = tl.where(usable, rank, 0.0)
        own, sums, squares = own + usable.to(tl.int32), sums + seen, squares + seen * seen
    top = tl.minimum(tl.maximum(tl.max(top, 0), 0.0 - HUGE), HUGE)
    return top, tl.sum(own, 0), tl.sum(sums, 0), tl.sum(squares, 0)


@triton.jit
def bound_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, threshold_ptr, least_ptr, most_ptr, index_ptr, count_ptr, sums_ptr,
                 share_ptr, rank_ptr, tally_ptr, board_ptr, parts_ptr, scale, sets, rows, segment_rows, slots,
                 most_chunks, words, threshold_batch, threshold_head, q_batch, q_head, k_batch, k_head, k_row,
                 KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, SEGMENTS: tl.constexpr,
                 LINES: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_SETS: tl.constexpr,
                 BLOCK_SEGMENTS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                 BLOCK_SEARCH: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
                 UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Add up the weights of sets within their bounds, and choose the others anew; the grid is (slots,).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        threshold_ptr: (B, G) float32.
        least_ptr: (B,) int32.
        most_ptr: (B,) int32.
        index_ptr: (B, G, X, W) int32, mended.
        count_ptr: (B, G, X) int32, mended.
        sums_ptr: (B * H, X, 2) float32.
        share_ptr: (B, H) float32 result.
        rank_ptr: (B, G, S) float32 scratch, used where a set is mended.
        tally_ptr: (B, G, X) int32, as `tallied` has it.
        board_ptr: Zeros, int64: a counter of tickets, and words for each set that several blocks mend.
        parts_ptr: Scratch, float32: three numbers for each head of each block of these sets.
        scale: Factor of the scores.
        sets: B * G.
        rows: S.
        segment_rows: W.
        slots: Blocks that the GPU holds at once, at least.
        most_chunks: The most that C may be.
        words: Words of a set: its blocks' rows, three guesses, two for each step of a search, and arrivals.
        threshold_batch: Stride of the thresholds.
        threshold_head: Stride of the thresholds.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: R.
        SEGMENTS: X.
        LINES: 1 where the group is one head, else BLOCK_GROUP.
        BLOCK_HEADS: Power of two, at least B * H / slots.
        BLOCK_SETS: Sets that are looked at together.
        BLOCK_SEGMENTS: Power of two, at least X.
        BLOCK_CHUNKS: Power of two, at least C.
        BLOCK_ROWS: Rows of a tile that is scored.
        BLOCK_SEARCH: Rows of a tile that is searched.
        BLOCK_GROUP: Power of two, at least 8 and J.
        BLOCK_DIM: Power of two, at least 16 and R.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    share_alone(share_ptr, sums_ptr, sets, tally_ptr, lo_ptr, hi_ptr, least_ptr, most_ptr, rows, KV_HEADS, GROUP,
                SEGMENTS, BLOCK_HEADS, BLOCK_SEGMENTS)  # fmt: skip
    member, column = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM)
    row, alone = tl.arange(0, BLOCK_ROWS), tl.arange(0, 1)
    strays, _first = stray_of(0, sets, tally_ptr, lo_ptr, hi_ptr, least_ptr, most_ptr, rows, KV_HEADS, SEGMENTS,
                              BLOCK_SETS, BLOCK_SEGMENTS)  # fmt: skip
    parts, span, chunks = shared_by(strays, slots, most_chunks, SEGMENTS)
    ticket = strays * chunks
    if strays > 0:
        ticket = tl.atomic_add(board_ptr, 1, sem="relaxed").to(tl.int32)
    while ticket < strays * chunks:
        nth, chunk = ticket // chunks, ticket % chunks
        _strays, pair = stray_of(nth, sets, tally_ptr, lo_ptr, hi_ptr, least_ptr, most_ptr, rows, KV_HEADS, SEGMENTS,
                                 BLOCK_SETS, BLOCK_SEGMENTS)  # fmt: skip
        count, _weak = tallied(pair + alone, alone == 0, tally_ptr, SEGMENTS, BLOCK_SEGMENTS)
        lo, hi, many, wanted = bounds_of(pair + alone, alone == 0, count, lo_ptr, hi_ptr, least_ptr, most_ptr, rows,
                                         KV_HEADS)  # fmt: skip
        lo, hi, many = tl.sum(lo, 0), tl.sum(hi, 0), tl.sum(many, 0)
        within, wanted = tl.sum((wanted == count).to(tl.int32), 0) > 0, tl.sum(wanted, 0)
        batch, head = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
        opens, part, part_rows = chunk // parts * span, chunk % parts, tl.cdiv(segment_rows, parts)
        closes, begins = tl.minimum(opens + span, SEGMENTS), opens * segment_rows + part * part_rows
        first_row = tl.maximum(lo, begins)
        end = tl.minimum(hi, tl.minimum(begins + part_rows * span, closes * segment_rows))
        q_columns = q_ptr + batch * q_batch + (head * GROUP + member % GROUP)[None, :] * q_head + column[:, None]
        q = tl.load(q_columns, mask=(column < DIM)[:, None], other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        k_set, ranks = k_ptr + batch * k_batch + head * k_head, rank_ptr + pair.to(tl.int64) * rows
        top, own, sums, squares = ranked(
            q, k_set, ranks, first_row, end, k_row, scale, DIM, LINES, BLOCK_ROWS, BLOCK_DIM, UPCAST
        )
        tl.debug_barrier()
        # alone a block needs no words, and there are none for it
        told = board_ptr + 1 + nth.to(tl.int64) * words
        guesses = told + most_chunks + 1
        under, over, room = search_together(
            ranks, first_row, end, own, sums, squares, tl.where(within, 0, wanted), guesses, chunks, BLOCK_SEARCH
        )
        # within bounds the threshold itself divides the rows
        threshold = threshold_ptr + batch * threshold_batch + head * threshold_head
        dividing = key_above(threshold_of(threshold, least_ptr + batch, many))
        under, over = tl.where(within, dividing, under), tl.where(within, dividing, over)
        under, over = score_of(under), score_of(over)
        mine = counted_between(ranks, first_row, end, under, over, BLOCK_SEARCH)
        beside, earlier = rows_before(told + 1, mine, chunk, part, chunks, BLOCK_CHUNKS)
        ties_then = (earlier >> FIELD).to(tl.int32)
        ties = ties_then + (beside >> FIELD).to(tl.int32)
        kept = (beside & MASK).to(tl.int32) + tl.minimum(ties, room) - tl.minimum(ties_then, room)
        whole, chosen = tl.zeros([BLOCK_ROWS, LINES], tl.float32), tl.zeros([BLOCK_ROWS, LINES], tl.float32)
        for number in range(opens, closes):
            stop = tl.minimum(end, (number + 1) * segment_rows)
            out = index_ptr + (pair.to(tl.int64) * SEGMENTS + number) * segment_rows
            for tile in range(tl.maximum(first_row, number * segment_rows), stop, BLOCK_ROWS):
                at = tile + row
                inside = at < stop
                rank = tl.load(ranks + at, mask=inside, other=float("-inf"))
                above = rank >= over
                tie = (rank >= under) & (above == 0)
                tie_through = tl.cumsum(tie.to(tl.int32), 0)
                taken = above | (tie & (ties + tie_through <= room))
                through = tl.cumsum(taken.to(tl.int32), 0)
                tl.store(out + kept + through - 1, at, mask=taken)
                kept += tl.max(through, 0)
                ties += tl.max(tie_through, 0)
                product = products(q, k_set, at, inside, k_row, DIM, BLOCK_DIM, UPCAST)
                own_score = tl.max(product, 1)[:, None] * scale if LINES == 1 else product * scale
                bits = (own_score - top[None, :]) * LOG2_E
                weight = tl.exp2(tl.minimum(bits, 0.0, propagate_nan=tl.PropagateNan.ALL))
                whole += weight * inside.to(tl.float32)[:, None]
                chosen += weight * taken.to(tl.float32)[:, None]
            if part == parts - 1:
                tl.store(count_ptr + pair * SEGMENTS + number, kept)
            kept = kept * 0
        share_together(share_ptr + pair * GROUP, parts_ptr + nth.to(tl.int64) * most_chunks * LINES * 3, told, top,
                       tl.sum(whole, 0), tl.sum(chosen, 0), chunk, chunks, GROUP, LINES, BLOCK_CHUNKS)  # fmt: skip
        ticket = tl.atomic_add(board_ptr, 1, sem="relaxed").to(tl.int32)
