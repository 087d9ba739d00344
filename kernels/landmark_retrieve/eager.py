"""Attention to retrieved blocks under the grouped softmax, in plain torch.

Shape legend: B batch, H query heads, G KV heads, T query rows, t some of them, S key rows, N closed blocks, C regular
rows of a block, K blocks retrieved, D head dim, X = H or 1 sets of heads, Y = T or 1 sets of rows.
"""

from typing import NamedTuple

import torch

# Elements of keys that are gathered at once.
GATHERED_AT_ONCE = 2**22


class Blocks(NamedTuple):
    """What blocks are read from.

    Attributes:
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        mark_BGND: (B, G, N, D) keys of the landmarks.
        begin_B: (B,) row at which block 0 begins.
        block: C.
    """

    k_BGSD: torch.Tensor
    v_BGSD: torch.Tensor
    mark_BGND: torch.Tensor
    begin_B: torch.Tensor
    block: int


def landmark_retrieve(
    q_BHTKD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    mark_BGND: torch.Tensor,
    index_BXYK: torch.Tensor,
    begin_B: torch.Tensor,
    block: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend each query's retrieved blocks: softmax within a block, landmarks' logits among blocks (arXiv 2305.16300).

    Blocks are read where they lie: block n is the rows begin + n C to begin + n C + C - 1 of keys and values, and
    mark n is the key of its landmark, whose value nobody reads. A query has a row for each of its K slots, turned to
    the place that the slot stands for, while a key stays as it is: so a block can stand in any slot. What is returned
    merges with the attention of the own block and of the local rows by the logs of the sums of weights, as
    `landmark_forward` returns them.

    Args:
        q_BHTKD: (B, H, T, K, D) queries, one for each slot; head h reads KV head h // (H / G).
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        mark_BGND: (B, G, N, D) keys of the landmarks.
        index_BXYK: (B, X, Y, K) int32 blocks, different ones; negative: none. X = H and Y = T chooses for each token
            and head, X = H and Y = 1 for each head, X = 1 and Y = T for each token.
        begin_B: (B,) row at which block 0 begins; negative where rows before those held are gone, whose blocks must
            not be chosen.
        block: C, at least 1.
        scale: Factor of the scores.

    Returns:
        (B, H, T, D) in the dtype of the queries, zeros where nothing was retrieved; (B, H, T) log of the sum of the
        landmarks' weights, at least float32, -inf there.

    Raises:
        ValueError: If the index is for other heads or rows, or the block is empty.
    """
    check_index(q_BHTKD, index_BXYK, block)
    wide = torch.promote_types(q_BHTKD.dtype, torch.float32)
    blocks = Blocks(k_BGSD.to(wide), v_BGSD.to(wide), mark_BGND.to(wide), begin_B.long(), block)
    batch, heads, rows, slots, dim = q_BHTKD.shape
    index_BHTK = index_BXYK.expand(batch, heads, rows, slots).long()
    at_once = max(1, GATHERED_AT_ONCE // (batch * heads * slots * block * dim))
    parts = []
    for first in range(0, rows, at_once):
        at = slice(first, first + at_once)
        parts.append(_rows(q_BHTKD[:, :, at].to(wide) * scale, blocks, index_BHTK[:, :, at]))
    out, lse = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    return out.to(q_BHTKD.dtype), lse


def _rows(q_BHtKD: torch.Tensor, blocks: Blocks, index_BHtK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (batch, heads), device = index_BHtK.shape[:2], index_BHtK.device
    one = torch.arange(batch, device=device)[:, None, None, None]
    head = torch.arange(heads, device=device)[:, None, None] // (heads // blocks.k_BGSD.shape[1])
    none_BHtK, number = index_BHtK < 0, index_BHtK.clamp(min=0)
    row_BHtKC = blocks.begin_B[one][..., None] + number[..., None] * blocks.block
    row_BHtKC = (row_BHtKC + torch.arange(blocks.block, device=device)).clamp(0, blocks.k_BGSD.shape[2] - 1)
    score_BHtKC = (blocks.k_BGSD[one[..., None], head[..., None], row_BHtKC] @ q_BHtKD[..., None])[..., 0]
    value_BHtKCD = blocks.v_BGSD[one[..., None], head[..., None], row_BHtKC]
    hidden_BHtK11 = none_BHtK[..., None, None]  # no weight: what stands there may be anything
    mean_BHtKD = (score_BHtKC[..., None, :].softmax(-1) @ value_BHtKCD).masked_fill(hidden_BHtK11, 0.0)[..., 0, :]
    landmark_BHtK = (blocks.mark_BGND[one, head, number] * q_BHtKD).sum(-1).masked_fill(none_BHtK, -torch.inf)
    nothing_BHt1 = none_BHtK.all(-1, keepdim=True)
    share_BHtK = landmark_BHtK.masked_fill(nothing_BHt1, 0.0).softmax(-1).masked_fill(nothing_BHt1, 0.0)
    return (share_BHtK[..., None, :] @ mean_BHtKD)[..., 0, :], landmark_BHtK.logsumexp(-1)


def check_index(q_BHTKD: torch.Tensor, index_BXYK: torch.Tensor, block: int) -> None:
    """Refuse an index for other queries.

    Args:
        q_BHTKD: (B, H, T, K, D) queries.
        index_BXYK: (B, X, Y, K) blocks.
        block: C.

    Raises:
        ValueError: If X is neither H nor 1, Y neither T nor 1, B or K differ, or the block is empty.
    """
    batch, heads, rows, slots, _ = q_BHTKD.shape
    fits = index_BXYK.shape[1] in (1, heads) and index_BXYK.shape[2] in (1, rows)
    if not fits or (index_BXYK.shape[0], index_BXYK.shape[3]) != (batch, slots):
        raise ValueError(f"expected an index for queries {tuple(q_BHTKD.shape[:4])}, got {tuple(index_BXYK.shape)}")
    if block < 1:
        raise ValueError(f"expected blocks of at least one row, got {block}")
