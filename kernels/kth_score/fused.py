"""Scores at the border of the k best of each row.

Up to 32768 key rows `stored/` does it. In longer ones scores are computed anew for each step of a search, never stored.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), S key rows,
R dims of the scores, N keys of a tile, M tokens of a tile, JP = J padded to a power of two.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..grouped_rows.fused import load_keys, load_lines, place_of_rows, ranks_of
from ..many_rows import Tiles, tiles_of
from ..op import Reduce
from ..select_topk.search.fused import first_guesses, next_guesses, ordered_key, score_of
from .eager import check_reduce
from .stored.fused import LINES, MOST_ROWS, border_of_stored, shape_of

# Steps after which a row is given up: halving the range alone ends after 32.
STEPS = 72
LONG_ROWS = 8192


@triton.jit
def rank_tile(q, k_base, k_row, key, end, row, scale, GROUP: tl.constexpr, DIM: tl.constexpr,
              BLOCK_DIM: tl.constexpr, M: tl.constexpr, JP: tl.constexpr, N: tl.constexpr, SHARED: tl.constexpr,
              UPCAST: tl.constexpr):  # fmt: skip
    """Rank one tile of keys.

    Args:
        q: (M * JP, BLOCK_DIM) queries.
        k_base: Pointer to row 0 of the keys.
        k_row: Stride of the keys.
        key: First key.
        end: One past the last key that any row sees.
        row: (rows of ranks,) rows of the queries.
        scale: Factor of the scores.
        GROUP: J.
        DIM: R.
        BLOCK_DIM: Power of two, at least 16 and R.
        M: Tokens.
        JP: Lines of a token.
        N: Keys.
        SHARED: Whether the group ranks together.
        UPCAST: Cast to float32 after each load.

    Returns:
        Ranks, -inf where a row does not see a key.
    """
    k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, N, UPCAST)
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    rank = ranks_of(score, GROUP, M, JP, N, SHARED)
    return tl.where((key + tl.arange(0, N))[None, :] <= row[:, None], rank, float("-inf"))


@triton.jit
def score_border_kernel(q_ptr, k_ptr, budget_ptr, first_ptr, kth_ptr, next_ptr, scale, new, rows, q_batch, q_head,
                        q_row, k_batch, k_head, k_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
                        DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr, JP: tl.constexpr,
                        N: tl.constexpr, SHARED: tl.constexpr, SAMPLE: tl.constexpr, STEPS: tl.constexpr,
                        UPCAST: tl.constexpr):  # fmt: skip
    """Search for the border of one tile of tokens of one KV head; the grid is (tiles, B * G).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        budget_ptr: (B, sets, T) rows wanted.
        first_ptr: (B,) first row that is no padding.
        kth_ptr: (B, sets, T) k-th largest scores.
        next_ptr: (B, sets, T) those after them.
        scale: Factor of the scores.
        new: T.
        rows: S.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: R.
        BLOCK_DIM: Power of two, at least 16 and R.
        M: Tokens of a tile.
        JP: Lines of a token.
        N: Keys of a tile.
        SHARED: Whether the group ranks together.
        SAMPLE: One tile of so many is read for the first guesses.
        STEPS: Most steps of the search.
        UPCAST: Cast to float32 after each load.
    """
    pair = tl.program_id(1)
    batch, group = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    begin = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    q_base = q_ptr + batch * q_batch + group * GROUP * q_head
    q = load_lines(q_base, begin, new, q_head, q_row, DIM, BLOCK_DIM, M, JP, GROUP, UPCAST)
    k_base = k_ptr + batch * k_batch + group * k_head
    place, there, token = place_of_rows(pair, begin, new, GROUP, M, JP, SHARED)
    first, row = tl.load(first_ptr + batch), rows - new + token
    end = rows - new + tl.minimum(begin + M, new)
    many = tl.maximum(tl.where(there, row - first + 1, 0), 0)
    k = tl.minimum(tl.maximum(tl.load(budget_ptr + place, mask=there, other=0), 0), many)
    sums, squares = tl.zeros_like(many).to(tl.float32), tl.zeros_like(many).to(tl.float32)
    seen = tl.zeros_like(many)
    for key in range(first, end, N * SAMPLE):
        rank = rank_tile(q, k_base, k_row, key, end, row, scale, GROUP, DIM, BLOCK_DIM, M, JP, N, SHARED, UPCAST)
        finite = rank > float("-inf")
        rank = tl.where(finite, rank, 0.0)
        sums, squares = sums + tl.sum(rank, 1), squares + tl.sum(rank * rank, 1)
        seen += tl.sum(finite.to(tl.int32), 1)
    mean = sums / tl.maximum(seen, 1)
    deviation = tl.sqrt(tl.maximum(squares / tl.maximum(seen, 1) - mean * mean, 0.0))
    # Keys of -inf and of what follows +inf: all rows are at or above the first, none is above the second.
    lo, hi = tl.zeros_like(many) - 2139095041, tl.zeros_like(many) + 2139095041
    lo_count, hi_count = many, tl.zeros_like(many)
    low_guess, high_guess = first_guesses(mean, deviation, tl.maximum(many, 1).to(tl.float32), k)
    one, two = ordered_key(low_guess), ordered_key(high_guess)
    one = tl.where((one > lo) & (one < hi), one, 0)
    two = tl.where((two > lo) & (two < hi), two, 0)
    # A row is done when exactly k are at or above `lo`, or none lies between (then scores tie at the border).
    active = ((k > 0) & (k < many)).to(tl.int32)
    step = 0
    while (tl.max(active, 0) > 0) & (step < STEPS):
        one_count, two_count = tl.zeros_like(many), tl.zeros_like(many)
        one_score, two_score = score_of(one)[:, None], score_of(two)[:, None]
        for key in range(first, end, N):
            rank = rank_tile(q, k_base, k_row, key, end, row, scale, GROUP, DIM, BLOCK_DIM, M, JP, N, SHARED, UPCAST)
            one_count += tl.sum((rank >= one_score).to(tl.int32), 1)
            two_count += tl.sum((rank >= two_score).to(tl.int32), 1)
        field = lo_count - hi_count
        above_two, above_one = two_count >= k, one_count >= k
        new_lo = tl.where(above_two, two, tl.where(above_one, one, lo))
        new_lo_count = tl.where(above_two, two_count, tl.where(above_one, one_count, lo_count))
        new_hi = tl.where(above_two, hi, tl.where(above_one, two, one))
        new_hi_count = tl.where(above_two, hi_count, tl.where(above_one, two_count, one_count))
        lo, hi = tl.where(active > 0, new_lo, lo), tl.where(active > 0, new_hi, hi)
        lo_count = tl.where(active > 0, new_lo_count, lo_count)
        hi_count = tl.where(active > 0, new_hi_count, hi_count)
        active = tl.where((lo_count == k) | (hi - 1 <= lo), 0, active)
        one, two = next_guesses(lo, hi, lo_count, hi_count, k, (lo_count - hi_count) * 4 > field)
        step += 1
    border = tl.where(k >= many, float("-inf"), score_of(lo))
    border = tl.where(k > 0, border, float("inf"))
    smallest, largest = tl.full(many.shape, float("inf"), tl.float32), tl.full(many.shape, float("-inf"), tl.float32)
    for key in range(first, end, N):
        rank = rank_tile(q, k_base, k_row, key, end, row, scale, GROUP, DIM, BLOCK_DIM, M, JP, N, SHARED, UPCAST)
        kept = (rank >= border[:, None]) & (rank > float("-inf"))
        smallest = tl.minimum(smallest, tl.min(tl.where(kept, rank, float("inf")), 1))
        largest = tl.maximum(largest, tl.max(tl.where(kept, float("-inf"), rank), 1))
    tied = (k > 0) & (k < many) & (lo_count != k)
    kth = tl.where(k > 0, tl.where(tied, score_of(lo), smallest), float("inf"))
    after = tl.where(tied, score_of(lo), largest)
    tl.store(kth_ptr + place, kth, mask=there)
    tl.store(next_ptr + place, after, mask=there)


def kth_score(
    q_BHTR: torch.Tensor,
    k_BGSR: torch.Tensor,
    k_BNT: torch.Tensor,
    first_B: torch.Tensor,
    scale: float,
    reduce: Reduce,
    plan: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the border as the eager twin does, in memory that grows with T.

    Args:
        q_BHTR: (B, H, T, R) queries; any strides, the last dim contiguous.
        k_BGSR: (B, G, S, R) keys; any strides, the last dim contiguous.
        k_BNT: (B, N, T) int32, how many rows each query row keeps.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the scores.
        reduce: "max" or "none".
        plan: How to cut the work, `queries` being lines; chosen from the shape if absent.

    Returns:
        Two (B, N, T) float32: the k-th largest score, and the next.

    Raises:
        ValueError: If `reduce` is neither, or the last dim is not contiguous.
    """
    check_reduce(reduce)
    check_contiguous_rows(q_BHTR, k_BGSR)
    budget_BNT = k_BNT.to(torch.int32).contiguous()
    if k_BGSR.shape[2] <= MOST_ROWS:
        return border_of_stored(q_BHTR, k_BGSR, budget_BNT, first_B, scale, plan)
    batch, _, new, dims = q_BHTR.shape
    groups, rows = k_BGSR.shape[1:3]
    kth_BNT, next_BNT = (torch.empty(k_BNT.shape, dtype=torch.float32, device=q_BHTR.device) for _ in range(2))
    shape = shape_of(q_BHTR, groups, k_BNT.shape[1], plan or tiles_of(LINES, q_BHTR.element_size(), dims))
    score_border_kernel[(triton.cdiv(new, shape["M"]), batch * groups)](
        q_BHTR, k_BGSR, budget_BNT, first_B, kth_BNT, next_BNT, scale, new, rows, *q_BHTR.stride()[:3],
        *k_BGSR.stride()[:3], SAMPLE=8 if rows >= LONG_ROWS else 1, STEPS=STEPS, **shape,
    )  # fmt: skip
    return kth_BNT, next_BNT
