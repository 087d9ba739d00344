"""Exact selection without a sort, for rows that fit into the registers of one block.

A search finds a threshold that keeps the k best scores; a prefix sum then writes their places in order. Each step
of the search counts at two guesses, a little below and a little above where the k-th score should lie: the first from
a sample of the scores, the others by interpolation. Two steps that do not shrink the field to a quarter are followed by
one that halves the range of keys, so that the search ends for any scores.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import interpreted
from ..overlap.fused import overlap, start_after_others
from ..tiling import SelectPlan, body_and_rest, power_of_2, select_plan
from .chosen.fused import choose, held_scores, write_end
from .joint.fused import select_joint
from .sample.fused import sample_of

# 32768 scores are 64 registers of each of 512 threads, and a quarter more another 16.
MOST_ROWS = 40960
# Of one block: four scores of each of 128 threads.
LEAST_ROWS = 512
# Of a thread: 512 of them are all that an SM has. 68 scores leave room for what is counted beside them, 80 not quite.
MAX_REGISTERS = 128
# Of a thread where a block has four warps: an SM holds five such blocks then.
FEW_REGISTERS = 96


@triton.jit
def select_kernel(s_ptr, k_ptr, index_ptr, count_ptr, rows, width, SETS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                  BLOCK_REST: tl.constexpr, BLOCK_WIDTH: tl.constexpr, SAMPLE: tl.constexpr, ALIGNED: tl.constexpr,
                  DIRECT: tl.constexpr, THREADS: tl.constexpr, BY_KEYS: tl.constexpr,
                  OVERLAP: tl.constexpr):  # fmt: skip
    """Choose the rows of one set; the grid is (B * N,).

    Args:
        s_ptr: (B, N, S) float32 scores, contiguous.
        k_ptr: (B,) rows wanted.
        index_ptr: (B, N, K) int32 result.
        count_ptr: (B, N) int32 result.
        rows: S.
        width: K.
        SETS: N.
        BLOCK_ROWS: Power of two, at least four for each thread.
        BLOCK_REST: The same, or 0; with BLOCK_ROWS at least S.
        BLOCK_WIDTH: Power of two, at least K.
        SAMPLE: Scores that the first guesses are made from.
        ALIGNED: As `held_scores` has it.
        DIRECT: As `scatter` has it.
        THREADS: Of the block.
        BY_KEYS: As `place_of` has it.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair = tl.program_id(0)
    # A multiple of four to the compiler, too, where it is one.
    pitch = rows // 4 * 4 if ALIGNED else rows
    s_set = s_ptr + pair.to(tl.int64) * pitch
    # The sample is asked for first, and searched while the rest is under way.
    sample = sample_of(s_set, rows, SAMPLE)
    wanted = tl.minimum(tl.load(k_ptr + pair // SETS), width)
    score = held_scores(s_set, 0, rows, BLOCK_ROWS, ALIGNED)
    rest = held_scores(s_set, BLOCK_ROWS, rows, BLOCK_REST, ALIGNED) if BLOCK_REST else score
    out = index_ptr + pair.to(tl.int64) * width
    k = choose(score, rest, sample, s_set, out, wanted, 0, 0, rows, BLOCK_ROWS, BLOCK_REST, DIRECT, THREADS, False,
               BY_KEYS)  # fmt: skip
    write_end(out, count_ptr + pair, k, width, BLOCK_WIDTH)


def select_topk(
    s_BNS: torch.Tensor,
    k_B: torch.Tensor,
    width: int,
    plan: SelectPlan | None = None,
    into: tuple[torch.Tensor, torch.Tensor] | None = None,
    told_BNX4: torch.Tensor | None = None,
    board: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose as the eager twin does, the same rows.

    Args:
        s_BNS: (B, N, S) float32 scores.
        k_B: (B,) int32, rows wanted of each sequence.
        width: K; no more than this many rows are chosen.
        plan: How to cut the work; chosen from the shape if absent.
        into: Contiguous index_BNK and count_BN to write; new ones if absent.
        told_BNX4: What `scores_told` tells of the scores, if known: then several blocks choose from each set, as they
            do from more than 40960 rows.
        board: `board_words` int64 zeros, of use there, too; new ones if absent.

    Returns:
        index_BNK, (B, N, K) int32, ascending, -1 past the last chosen row;
        count_BN, (B, N) int32, min(k, K, rows that can be chosen).

    Raises:
        ValueError: If `width` is not positive or the scores are not float32.
    """
    if width < 1 or s_BNS.dtype != torch.float32:
        raise ValueError(f"expected a positive width and float32 scores, got {width} and {s_BNS.dtype}")
    s_BNS = s_BNS.contiguous()
    batch, sets, rows = s_BNS.shape
    index_BNK, count_BN = into or empty_choice(batch, sets, width, s_BNS.device)
    if told_BNX4 is not None or rows > MOST_ROWS:
        select_joint(s_BNS, k_B, index_BNK, count_BN, told_BNX4=told_BNX4, board=board)
        return index_BNK, count_BN
    by_one_block(s_BNS, k_B, (index_BNK, count_BN), plan, by_keys=False)
    return index_BNK, count_BN


def by_one_block(
    s_BNS: torch.Tensor,
    k_B: torch.Tensor,
    chosen: tuple[torch.Tensor, torch.Tensor],
    plan: SelectPlan | None = None,
    *,
    by_keys: bool,
) -> None:
    """Choose by one block for each set.

    Args:
        s_BNS: (B, N, S) float32 scores, contiguous, 40960 rows at most.
        k_B: (B,) int32, rows wanted of each sequence.
        chosen: index_BNK and count_BN, written.
        plan: How to cut the work; chosen from the shape if absent.
        by_keys: Whether guesses lie between keys instead of scores: for positive ones over many decades.
    """
    (batch, sets, rows), width = s_BNS.shape, chosen[0].shape[2]
    body_rows, rest_rows = body_and_rest(max(LEAST_ROWS, rows))
    plan = plan or select_plan(body_rows)
    threads = 32 * plan.num_warps
    select_kernel[(batch * sets,)](
        s_BNS, k_B, *chosen, rows, width, SETS=sets, BLOCK_ROWS=body_rows,
        BLOCK_REST=max(rest_rows, 4 * threads) if rest_rows else 0, BLOCK_WIDTH=power_of_2(width),
        SAMPLE=plan.sample_rows, ALIGNED=rows % 4 == 0, DIRECT=not interpreted(), THREADS=threads, BY_KEYS=by_keys,
        num_warps=plan.num_warps, maxnreg=FEW_REGISTERS if plan.num_warps == 4 else MAX_REGISTERS,
        **overlap(s_BNS.device),
    )  # fmt: skip


def empty_choice(batch: int, sets: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Allocate what a choice writes.

    Args:
        batch: B.
        sets: N.
        width: K.
        device: Where.

    Returns:
        index_BNK and count_BN, int32.
    """
    index_BNK = torch.empty(batch, sets, width, dtype=torch.int32, device=device)
    return index_BNK, torch.empty(batch, sets, dtype=torch.int32, device=device)
