"""What runs over the whole text: the largest factor so far, and sums of chunks as states before each of them.

Shape legend: B batch, G KV heads, T rows, chunks of M rows, F features, D head dim.
"""

import torch
import triton
import triton.language as tl

from ..eager import CHUNK

COLUMNS, JOINED = 64, 16  # numbers of a state, and chunks joined at once
SCANNED = 4096  # logs looked at together for the largest so far


@triton.jit
def larger(left, right):
    """Give the larger of two, or NaN.

    Args:
        left: One.
        right: The other.

    Returns:
        That.
    """
    return tl.maximum(left, right, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def running_top_kernel(log_ptr, scale_ptr, top_ptr, last_ptr, rows, SCANNED: tl.constexpr):
    """Find the largest log so far of each row of one KV head; the grid is (B * G,).

    Args:
        log_ptr: (B, G, T) logs of factors, contiguous.
        scale_ptr: (B, G) log of the factor of the state before the first row.
        top_ptr: (B, G, T) written.
        last_ptr: (B, G) the last of them, written.
        rows: T.
        SCANNED: Rows looked at together.
    """
    pair = tl.program_id(0).to(tl.int64)
    top = tl.load(scale_ptr + pair)
    for begin in range(0, rows, SCANNED):
        row = begin + tl.arange(0, SCANNED)
        log = tl.load(log_ptr + pair * rows + row, mask=row < rows, other=float("-inf"))
        tl.store(top_ptr + pair * rows + row, larger(tl.associative_scan(log, 0, larger), top), mask=row < rows)
        top = larger(tl.reduce(log, 0, larger), top)
    tl.store(last_ptr + pair, top)


@triton.jit
def carry_sums(sums_ptr, state_ptr, last_ptr, scale_ptr, top_ptr, pair, part, rows, chunks, SIZE: tl.constexpr,
               COLUMNS: tl.constexpr, N: tl.constexpr, M: tl.constexpr):  # fmt: skip
    """Turn some columns of sums of chunks into states before each chunk, in place.

    All factors are known, so some chunks are joined by one product with a triangle of their quotients.

    Args:
        sums_ptr: (B * G, chunks, SIZE), written.
        state_ptr: (B * G, SIZE) state before the first chunk.
        last_ptr: (B * G, SIZE) state after the last chunk.
        scale_ptr: (B * G,) log of the factor of the state before the first chunk.
        top_ptr: (B * G, T) largest log so far.
        pair: Sequence and KV head.
        part: Number of the block of columns.
        rows: T.
        chunks: Of the text.
        SIZE: Numbers of a state.
        COLUMNS: Of a block.
        N: Chunks joined at once.
        M: Rows of a chunk.
    """
    column, each = part * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, N)
    inside = column < SIZE
    state = tl.load(state_ptr + pair * SIZE + column, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + pair)
    for begin in range(0, chunks, N):
        chunk = begin + each
        there = chunk < chunks
        # Before a chunk stands the factor of the row before it, at first that of the state.
        top = tl.load(top_ptr + pair * rows + tl.minimum(chunk * M + M, rows) - 1)
        before = tl.load(top_ptr + pair * rows + chunk * M - 1, mask=(chunk > 0) & there, other=float("inf"))
        before = tl.where(chunk > 0, before, scale)
        at = sums_ptr + (pair * chunks + chunk)[:, None] * SIZE + column[None, :]
        mask = there[:, None] & inside[None, :]
        sums = tl.load(at, mask=mask, other=0.0)
        earlier = (each[None, :] < each[:, None]) & (top > float("-inf"))[None, :]
        share = tl.where(earlier, tl.exp(tl.where(earlier, top[None, :] - before[:, None], 0.0)), 0.0)
        carried = tl.where(scale > float("-inf"), tl.exp(scale - before), 0.0)
        states = tl.dot(share, sums, carried[:, None] * state[None, :], input_precision="tf32x3")
        end = tl.load(top_ptr + pair * rows + tl.minimum((begin + N) * M, rows) - 1)
        part_of_end = tl.where(there & (top > float("-inf")), tl.exp(top - end), 0.0)
        decay = tl.where(scale > float("-inf"), tl.exp(scale - end), 0.0)
        state, scale = state * decay + tl.sum(sums * part_of_end[:, None], 0), end
        tl.store(at, states, mask=mask)
    tl.store(last_ptr + pair * SIZE + column, state, mask=inside)


@triton.jit
def running_sums_kernel(sums_ptr, state_ptr, last_ptr, norms_ptr, norm_ptr, last_norm_ptr, scale_ptr, top_ptr, rows,
                        chunks, FEATURES: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr,
                        M: tl.constexpr):  # fmt: skip
    """Turn sums of chunks into states before each chunk, in place; the grid is (blocks of columns, B * G).

    The first blocks own columns of the norms, all others those of the states.

    Args:
        sums_ptr: (B * G, chunks, F * D), written.
        state_ptr: (B * G, F * D) before the first chunk.
        last_ptr: (B * G, F * D) after the last chunk.
        norms_ptr: (B * G, chunks, F), written.
        norm_ptr: (B * G, F) before the first chunk.
        last_norm_ptr: (B * G, F) after the last chunk.
        scale_ptr: (B * G,) log of the factor of both before the first chunk.
        top_ptr: (B * G, T) largest log so far.
        rows: T.
        chunks: Of the text.
        FEATURES: F.
        DIM: D.
        COLUMNS: Of a block.
        N: Chunks joined at once.
        M: Rows of a chunk.
    """
    part, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if part < tl.cdiv(FEATURES, COLUMNS):
        carry_sums(norms_ptr, norm_ptr, last_norm_ptr, scale_ptr, top_ptr, pair, part, rows, chunks, FEATURES, COLUMNS,
                   N, M)  # fmt: skip
    else:
        part -= tl.cdiv(FEATURES, COLUMNS)
        carry_sums(sums_ptr, state_ptr, last_ptr, scale_ptr, top_ptr, pair, part, rows, chunks, FEATURES * DIM,
                   COLUMNS, N, M)  # fmt: skip


def running_top(log_BGT: torch.Tensor, scale_BG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the largest log so far.

    Args:
        log_BGT: (B, G, T) float32 logs of factors, contiguous.
        scale_BG: (B, G) float32 log of the factor of the state before the first row, contiguous.

    Returns:
        (B, G, T), and (B, G) the last of them.
    """
    top, last = torch.empty_like(log_BGT), torch.empty_like(scale_BG)
    running_top_kernel[(scale_BG.numel(),)](
        log_BGT, scale_BG, top, last, log_BGT.shape[2], SCANNED=SCANNED, num_warps=8
    )
    return top, last


def running_sums(
    sums: tuple[torch.Tensor, torch.Tensor],
    begun: tuple[torch.Tensor, torch.Tensor],
    scale_BG: torch.Tensor,
    top_BGT: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn sums of chunks into states before each chunk, in place.

    Args:
        sums: (B, G, chunks, F, D) and (B, G, chunks, F), float32, contiguous, written.
        begun: (B, G, F, D) and (B, G, F) before the first chunk, contiguous.
        scale_BG: (B, G) log of their factor.
        top_BGT: (B, G, T) largest log so far.

    Returns:
        Both after the last chunk.
    """
    (features, dim), chunks = begun[0].shape[2:], sums[0].shape[2]
    last = (torch.empty_like(begun[0]), torch.empty_like(begun[1]))
    blocks = triton.cdiv(features, COLUMNS) + triton.cdiv(features * dim, COLUMNS)
    running_sums_kernel[(blocks, scale_BG.numel())](
        sums[0], begun[0], last[0], sums[1], begun[1], last[1], scale_BG, top_BGT, top_BGT.shape[2], chunks,
        FEATURES=features, DIM=dim, COLUMNS=COLUMNS, N=JOINED, M=CHUNK, num_warps=2,
    )  # fmt: skip
    return last
