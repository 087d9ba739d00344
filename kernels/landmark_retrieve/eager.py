"""Attention to retrieved blocks under the grouped softmax, in plain torch.

Shape legend: B batch, H query heads, G KV heads, T query rows, t some of them, N closed blocks, C rows of a block, K
blocks retrieved, D head dim, X = H or 1 sets of heads, Y = T or 1 sets of rows.
"""

import torch

# Query rows whose blocks are gathered at once.
ROWS_AT_ONCE = 16


def landmark_retrieve(
    q_BHTKD: torch.Tensor,
    k_BGNCD: torch.Tensor,
    v_BGNCD: torch.Tensor,
    index_BXYK: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend each query's retrieved blocks: softmax within a block, landmarks' logits among blocks (arXiv 2305.16300).

    A query has a row for each of its K slots, turned to the place that the slot stands for, while keys are kept turned
    by their place within the block only: so a block can stand in any slot. What is returned merges with the attention
    of the own block and of the local rows by the logs of the sums of weights, as `landmark_forward` returns them.

    Args:
        q_BHTKD: (B, H, T, K, D) queries, one for each slot.
        k_BGNCD: (B, G, N, C, D) keys of closed blocks, the last row of each its landmark.
        v_BGNCD: (B, G, N, C, D) values.
        index_BXYK: (B, X, Y, K) int32 blocks, different ones; negative: none. X = H and Y = T chooses for each token
            and head, X = H and Y = 1 for each head, X = 1 and Y = T for each token.
        scale: Factor of the scores.

    Returns:
        (B, H, T, D) in the dtype of the queries, zeros where nothing was retrieved; (B, H, T) log of the sum of the
        landmarks' weights, at least float32, -inf there.

    Raises:
        ValueError: If the index is for other heads or rows.
    """
    check_index(q_BHTKD, index_BXYK)
    wide = torch.promote_types(q_BHTKD.dtype, torch.float32)
    k, v = k_BGNCD.to(wide), v_BGNCD.to(wide)
    batch, heads, rows, slots, _ = q_BHTKD.shape
    index_BHTK = index_BXYK.expand(batch, heads, rows, slots).long()
    parts = []
    for first in range(0, rows, ROWS_AT_ONCE):
        at = slice(first, first + ROWS_AT_ONCE)
        parts.append(_rows(q_BHTKD[:, :, at].to(wide) * scale, k, v, index_BHTK[:, :, at]))
    out, lse = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    return out.to(q_BHTKD.dtype), lse


def _rows(
    q_BHtKD: torch.Tensor, k_BGNCD: torch.Tensor, v_BGNCD: torch.Tensor, index_BHtK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads = index_BHtK.shape[:2]
    one = torch.arange(batch, device=index_BHtK.device)[:, None, None, None]
    head = torch.arange(heads, device=index_BHtK.device)[:, None, None] // (heads // k_BGNCD.shape[1])
    none_BHtK, block = index_BHtK < 0, index_BHtK.clamp(min=0)
    k_BHtKCD, v_BHtKCD = k_BGNCD[one, head, block], v_BGNCD[one, head, block][..., :-1, :]
    score_BHtKC = (k_BHtKCD @ q_BHtKD[..., None])[..., 0]
    mean_BHtKD = (score_BHtKC[..., None, :-1].softmax(-1) @ v_BHtKCD)[..., 0, :]
    landmark_BHtK = score_BHtKC[..., -1].masked_fill(none_BHtK, -torch.inf)
    nothing_BHt1 = none_BHtK.all(-1, keepdim=True)
    share_BHtK = landmark_BHtK.masked_fill(nothing_BHt1, 0.0).softmax(-1).masked_fill(nothing_BHt1, 0.0)
    return (share_BHtK[..., None, :] @ mean_BHtKD)[..., 0, :], landmark_BHtK.logsumexp(-1)


def check_index(q_BHTKD: torch.Tensor, index_BXYK: torch.Tensor) -> None:
    """Refuse an index for other queries.

    Args:
        q_BHTKD: (B, H, T, K, D) queries.
        index_BXYK: (B, X, Y, K) blocks.

    Raises:
        ValueError: If X is neither H nor 1, Y neither T nor 1, or B or K differ.
    """
    batch, heads, rows, slots, _ = q_BHTKD.shape
    fits = index_BXYK.shape[1] in (1, heads) and index_BXYK.shape[2] in (1, rows)
    if not fits or (index_BXYK.shape[0], index_BXYK.shape[3]) != (batch, slots):
        raise ValueError(f"expected an index for queries {tuple(q_BHTKD.shape[:4])}, got {tuple(index_BXYK.shape)}")
