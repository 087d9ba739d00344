"""The share of a softmax that lies on the rows chosen, a block for each query head: one launch, and one order of sums.

The heads of a group read the same index one after the other, which the second cache keeps. Scores are read where the
index says, 4 bytes of each sector of 32 that holds one; a thread asks for sixteen before it waits for the first.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, K width of the index.
"""

import torch
import triton
import triton.language as tl

from ..overlap.fused import overlap, start_after_others
from ..tiling import multiprocessors, power_of_2

LOG2_E = tl.constexpr(1.4426950408889634)
# Rows of a warp, sixteen of each thread; rows of a tile, where heads are fewer than SMs and where they are not.
WARP_ROWS, FEW_ROWS, MANY_ROWS = 512, 16384, 4096


# Were the width known as a multiple of 16, a thread would hold four neighbours, and a warp ask four times for a sector.
@triton.jit(do_not_specialize=["width"])
def chosen_share_kernel(score_ptr, lse_ptr, index_ptr, count_ptr, share_ptr, rows, width, GROUP: tl.constexpr,
                        BLOCK_ROWS: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Sum the weights of the rows that one head has; the grid is (B * H,).

    Args:
        score_ptr: (B, H, S) float32, contiguous.
        lse_ptr: (B, H) float32, contiguous.
        index_ptr: (B, G, K) int32, contiguous.
        count_ptr: (B, G) int32, contiguous.
        share_ptr: (B, H) float32 result.
        rows: S.
        width: K.
        GROUP: J.
        BLOCK_ROWS: Rows of a tile, a power of two.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    head = tl.program_id(0)
    pair = head // GROUP
    count, lse = tl.minimum(tl.load(count_ptr + pair), width), tl.load(lse_ptr + head)
    index_set = index_ptr + pair.to(tl.int64) * width
    scores = score_ptr + head.to(tl.int64) * rows
    slot = tl.arange(0, BLOCK_ROWS)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for tile in range(0, count, BLOCK_ROWS):
        valid = tile + slot < count
        row = tl.load(index_set + tile + slot, mask=valid, other=0)
        score = tl.load(scores + row, mask=valid, other=float("-inf"))
        total += tl.where(valid, tl.exp2((score - lse) * LOG2_E), 0.0)
    tl.store(share_ptr + head, tl.sum(total, 0))


def chosen_share(
    score_BHS: torch.Tensor, lse_BH: torch.Tensor, index_BGK: torch.Tensor, count_BG: torch.Tensor
) -> torch.Tensor:
    """Sum as the eager twin does, in one read of the chosen scores.

    Args:
        score_BHS: (B, H, S) float32 scores.
        lse_BH: (B, H) float32, the log of the sum of exp(score) over all rows.
        index_BGK: (B, G, K) int32 rows, ascending for speed.
        count_BG: (B, G) int32, how many of the K are valid.

    Returns:
        (B, H) float32.

    Raises:
        ValueError: If the scores are not float32.
    """
    if score_BHS.dtype != torch.float32:
        raise ValueError(f"expected float32 scores, got {score_BHS.dtype}")
    batch, heads, rows = score_BHS.shape
    width = index_BGK.shape[2]
    share_BH = score_BHS.new_empty(batch, heads)
    most = FEW_ROWS if batch * heads < multiprocessors(score_BHS.device) else MANY_ROWS
    block_rows = min(most, power_of_2(width))
    chosen_share_kernel[(batch * heads,)](
        score_BHS.contiguous(), lse_BH.contiguous(), index_BGK.contiguous(), count_BG.contiguous(), share_BH, rows,
        width, GROUP=heads // index_BGK.shape[1], BLOCK_ROWS=block_rows, num_warps=max(1, block_rows // WARP_ROWS),
        **overlap(score_BHS.device),
    )  # fmt: skip
    return share_BH
