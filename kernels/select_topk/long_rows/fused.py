"""Exact selection from rows too long for one block: two launches of several blocks a row.

The first narrows. All blocks of a row look at the same sample of the whole row and find two scores between which the
k-th lies, but for one row in a hundred thousand. Each block then sets apart the scores of its chunk between the two,
the candidates, and counts those above. The second launch settles: each block finds the k-th among the candidates of
all chunks, for itself, and writes its rows. Where the k-th is not between the two, or candidates crowd in one chunk,
the second launch takes longer, and is no less exact: it then searches all scores.

Nothing waits inside a kernel, nothing is atomic, nothing returns to the host, and no memory need be zero before.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result, C blocks (chunks) of a row, W scores
of each chunk that are looked at together.
"""

import torch
import triton
import triton.language as tl

from ...overlap.fused import overlap, start_after_others
from ...tiling import LongPlan, power_of_2
from ..search.fused import BEYOND, LEAST, next_guesses, score_of, shrink
from .sample.fused import bounds_from_sample

# Consecutive rows that are sampled together: one load of 16 bytes.
RUN = 4
# Scores that a block looks at together: 16 of each of 256 threads.
TILE = 4096


@triton.jit
def narrow_kernel(s_ptr, k_ptr, apart_ptr, tally_ptr, bounds_ptr, rows, width, SETS: tl.constexpr,
                  CHUNK: tl.constexpr, CHUNKS: tl.constexpr, SAMPLE: tl.constexpr, RUN: tl.constexpr,
                  OVERLAP: tl.constexpr):  # fmt: skip
    """Set the candidates of one chunk apart; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        apart_ptr: (B, N, S) float32 result: each chunk begins with its candidates.
        tally_ptr: (B * N, C, 3) int32 result: usable scores, scores above, candidates.
        bounds_ptr: (B * N, 2) int32 result: keys that candidates reach, and do not reach.
        rows: S.
        width: K.
        SETS: N.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        SAMPLE: Scores of the sample.
        RUN: Consecutive rows that are sampled together.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    s_set = s_ptr + pair.to(tl.int64) * rows
    row = chunk * CHUNK + tl.arange(0, CHUNK)
    score = tl.load(s_set + row, mask=row < rows, other=float("-inf"))
    drawn = tl.arange(0, SAMPLE)
    place = ((drawn // RUN).to(tl.int64) * rows) // (SAMPLE // RUN) + drawn % RUN
    sample = tl.load(s_set + place, mask=place < rows, other=float("-inf"))
    k = tl.maximum(tl.minimum(tl.load(k_ptr + pair // SETS), width), 1)
    low, high = bounds_from_sample(sample, tl.minimum(k.to(tl.float32) / rows, 1.0), SAMPLE)
    if chunk == 0:
        tl.store(bounds_ptr + pair * 2, low)
        tl.store(bounds_ptr + pair * 2 + 1, high)
    above = score >= score_of(high)
    candidate = (score >= score_of(low)) & (score > float("-inf")) & (above == 0)
    through = tl.cumsum(candidate.to(tl.int32), 0)
    apart = apart_ptr + pair.to(tl.int64) * rows + chunk * CHUNK
    tl.store(apart + through - 1, score, mask=candidate)
    tally = tally_ptr + (pair * CHUNKS + chunk) * 3
    tl.store(tally, tl.sum((score > float("-inf")).to(tl.int32), 0))
    tl.store(tally + 1, tl.sum(above.to(tl.int32), 0))
    tl.store(tally + 2, tl.max(through, 0))


@triton.jit
def count_field(field, filled_C, first, second, most, CHUNK: tl.constexpr, BLOCK_CHUNKS: tl.constexpr,
                BLOCK_FIELD: tl.constexpr):  # fmt: skip
    """Count, in each chunk of a row, the scores that reach two guesses.

    Args:
        field: Pointer to scores; each chunk begins with those that count.
        filled_C: (C,) how many count.
        first: A score.
        second: A score.
        most: The largest of `filled_C`.
        CHUNK: Rows of a chunk.
        BLOCK_CHUNKS: Power of two, at least C.
        BLOCK_FIELD: W.

    Returns:
        (C,) scores at or above the first, and the same of the second.
    """
    slot, other = tl.arange(0, BLOCK_FIELD), tl.arange(0, BLOCK_CHUNKS)
    base = other.to(tl.int64)[:, None] * CHUNK + slot[None, :]
    counts = tl.zeros([BLOCK_CHUNKS, BLOCK_FIELD], tl.int32)
    for start in range(0, most, BLOCK_FIELD):
        mask = (start + slot)[None, :] < filled_C[:, None]
        score = tl.load(field + base + start, mask=mask, other=float("-inf"))
        # Both counts share one number: 16 bits each, as a chunk is shorter than 32768.
        counts += (score >= first).to(tl.int32) + ((score >= second).to(tl.int32) << 16)
    packed = tl.sum(counts, 1)
    return packed & 0xFFFF, packed >> 16


@triton.jit
def settle_kernel(s_ptr, k_ptr, apart_ptr, tally_ptr, bounds_ptr, index_ptr, count_ptr, rows, width,
                  SETS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr,
                  BLOCK_FIELD: tl.constexpr, BLOCK_TAIL: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Find the k-th score of a row, and write the chosen rows of one chunk; the grid is (B * N, C).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        apart_ptr: (B, N, S) float32: each chunk begins with its candidates.
        tally_ptr: (B * N, C, 3) int32: usable scores, scores above, candidates.
        bounds_ptr: (B * N, 2) int32: keys that candidates reach, and do not reach.
        index_ptr: (B, N, K) int32 result.
        count_ptr: (B, N) int32 result.
        rows: S.
        width: K.
        SETS: N.
        CHUNK: Rows of a chunk.
        CHUNKS: C.
        BLOCK_CHUNKS: Power of two, at least C.
        BLOCK_FIELD: W.
        BLOCK_TAIL: Power of two, at least K / C.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, chunk = tl.program_id(0), tl.program_id(1)
    s_set = s_ptr + pair.to(tl.int64) * rows
    apart = apart_ptr + pair.to(tl.int64) * rows
    row = chunk * CHUNK + tl.arange(0, CHUNK)
    score = tl.load(s_set + row, mask=row < rows, other=float("-inf"))
    other = tl.arange(0, BLOCK_CHUNKS)
    tally = tally_ptr + (pair * CHUNKS + other) * 3
    able_C = tl.load(tally, mask=other < CHUNKS, other=0)
    above_C = tl.load(tally + 1, mask=other < CHUNKS, other=0)
    between_C = tl.load(tally + 2, mask=other < CHUNKS, other=0)
    able = tl.sum(able_C, 0)
    k = tl.maximum(tl.minimum(tl.minimum(tl.load(k_ptr + pair // SETS), able), width), 0)
    above, between = tl.sum(above_C, 0), tl.sum(between_C, 0)
    narrowed = (above < k) & (k <= above + between)
    field = tl.where(narrowed, apart, s_set)
    above_C = tl.where(narrowed, above_C, 0)
    filled_C = tl.where(narrowed, between_C, tl.minimum(tl.maximum(rows - other * CHUNK, 0), CHUNK))
    most = tl.max(filled_C, 0)
    # lo always keeps at least k scores and hi always keeps fewer; counts are of all scores, not of candidates alone.
    bounds = bounds_ptr + pair * 2
    lo = tl.where(narrowed, tl.load(bounds), LEAST)
    hi = tl.where(narrowed, tl.load(bounds + 1), BEYOND)
    hi_count = tl.where(narrowed, above, 0)
    lo_count = hi_count + tl.where(narrowed, between, able)
    first, second = next_guesses(lo, hi, lo_count, hi_count, k, narrowed == 0)
    while (k > 0) & (lo_count != k) & (lo + 1 < hi):
        first_C, second_C = count_field(
            field, filled_C, score_of(first), score_of(second), most, CHUNK, BLOCK_CHUNKS, BLOCK_FIELD
        )
        first_count = tl.sum(above_C + first_C, 0)
        second_count = tl.sum(above_C + second_C, 0)
        before = lo_count - hi_count
        lo, lo_count, hi, hi_count = shrink(lo, lo_count, hi, hi_count, first, first_count, second, second_count, k)
        first, second = next_guesses(lo, hi, lo_count, hi_count, k, (lo_count - hi_count) * 4 > before)
    lo_score, hi_score = score_of(lo), score_of(hi)
    least_C, over_C = count_field(field, filled_C, lo_score, hi_score, most, CHUNK, BLOCK_CHUNKS, BLOCK_FIELD)
    earlier = other < chunk
    first_above = tl.sum(tl.where(earlier, above_C + over_C, 0), 0)
    first_tie = tl.sum(tl.where(earlier, least_C - over_C, 0), 0)
    room = k - hi_count
    over = score >= hi_score
    tie = (score >= lo_score) & (score > float("-inf")) & (over == 0)
    packed = over.to(tl.int32) + (tie.to(tl.int32) << 16)
    through = tl.cumsum(packed, 0) - packed
    ties_before = first_tie + (through >> 16)
    place = first_above + (through & 0xFFFF) + tl.minimum(ties_before, room)
    out = index_ptr + pair.to(tl.int64) * width
    tl.store(out + place, row, mask=over | (tie & (ties_before < room)))
    if chunk == 0:
        tl.store(count_ptr + pair, k)
    slot = chunk * BLOCK_TAIL + tl.arange(0, BLOCK_TAIL)
    tl.store(out + slot, tl.full([BLOCK_TAIL], -1, tl.int32), mask=(slot >= k) & (slot < width))


def select_long(
    s_BNS: torch.Tensor, k_B: torch.Tensor, width: int, plan: LongPlan
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose rows from sets of any length.

    Args:
        s_BNS: (B, N, S) float32 scores, contiguous.
        k_B: (B,) int32, rows wanted of each sequence.
        width: K.
        plan: How to cut the work.

    Returns:
        index_BNK and count_BN as `select_topk` does.
    """
    batch, sets, rows = s_BNS.shape
    pairs, chunks = batch * sets, triton.cdiv(rows, plan.chunk_rows)
    apart_BNS = torch.empty_like(s_BNS)
    tally = torch.empty(pairs, chunks, 3, dtype=torch.int32, device=s_BNS.device)
    bounds = torch.empty(pairs, 2, dtype=torch.int32, device=s_BNS.device)
    index_BNK = torch.empty(batch, sets, width, dtype=torch.int32, device=s_BNS.device)
    count_BN = torch.empty(batch, sets, dtype=torch.int32, device=s_BNS.device)
    options = {"num_warps": plan.num_warps, "maxnreg": plan.max_registers, **overlap(s_BNS.device)}
    narrow_kernel[(pairs, chunks)](
        s_BNS, k_B, apart_BNS, tally, bounds, rows, width, SETS=sets, CHUNK=plan.chunk_rows, CHUNKS=chunks,
        SAMPLE=plan.sample, RUN=RUN, **options,
    )  # fmt: skip
    block_chunks = power_of_2(chunks)
    settle_kernel[(pairs, chunks)](
        s_BNS, k_B, apart_BNS, tally, bounds, index_BNK, count_BN, rows, width, SETS=sets, CHUNK=plan.chunk_rows,
        CHUNKS=chunks, BLOCK_CHUNKS=block_chunks,
        BLOCK_FIELD=min(plan.chunk_rows, max(16, TILE // block_chunks)),
        BLOCK_TAIL=power_of_2(triton.cdiv(width, chunks)), **options,
    )  # fmt: skip
    return index_BNK, count_BN
