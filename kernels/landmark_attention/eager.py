"""Landmark attention in plain torch: each block of keys is one entry of the softmax, by its landmark's logit.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), t some of
them, S key rows, D head dim, N blocks, C = block rows of a block, the last of which is its landmark.
"""

from typing import NamedTuple

import torch

# Query rows that are attended at once: memory grows with S, not with its square.
ROWS_AT_ONCE = 256


class Blocks(NamedTuple):
    """Keys and values laid out by blocks.

    Attributes:
        first_BN: (B or 1, N) first row of each block; S where a sequence has fewer blocks than others.
        row_BNC: (B or 1, N, C) row of each place.
        regular_BNC: (B or 1, N, C) bool, whether a row that is no landmark stands there.
        k_BGND: (B, G, N * C, D), zeros where no row stands.
        v_BGND: (B, G, N * C, D), zeros where no row stands.
    """

    first_BN: torch.Tensor
    row_BNC: torch.Tensor
    regular_BNC: torch.Tensor
    k_BGND: torch.Tensor
    v_BGND: torch.Tensor


def landmark_attention(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend with the grouped softmax of Landmark Attention (arXiv 2305.16300, section 3.2), causally.

    Row p of a document is the landmark of its block if p % block == block - 1. A query attends the regular rows of its
    own block up to itself, and the regular rows of earlier blocks of its document with weight (softmax within their
    block) * (weight of their landmark); earlier landmarks compete with the own block's rows in one softmax. The own
    landmark is never seen, not even by itself. Weights of a row sum to one.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows; head h reads KV head h // J.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        block: C, rows of a block, its landmark included; at least 2.
        scale: Factor of the scores.
        start_BS: (B, S) integers that never fall along S: the first row of each row's document. A row before its own
            start is padding: it is not seen, and its output is zero. One document of all S rows if absent.

    Returns:
        (B, H, T, D) in the dtype of the queries.

    Raises:
        ValueError: If shapes do not fit, or the block is too short.
    """
    return landmark_forward(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS)[0]


def landmark_forward(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend as `landmark_attention` does, and keep each row's sum of weights, by which parts are merged.

    Args:
        q_BHTD: (B, H, T, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        block: C.
        scale: Factor of the scores.
        start_BS: (B, S) first row of each row's document, or None.

    Returns:
        (B, H, T, D) in the dtype of the queries; (B, H, T) log of the sum of weights, -inf for padding.

    Raises:
        ValueError: If shapes do not fit, or the block is too short.
    """
    check_shapes(q_BHTD, k_BGSD, v_BGSD, block, start_BS)
    wide = torch.promote_types(q_BHTD.dtype, torch.float32)
    blocks = lay_out(k_BGSD.to(wide), v_BGSD.to(wide), block, start_BS)
    rows, new = k_BGSD.shape[2], q_BHTD.shape[2]
    at_T = torch.arange(rows - new, rows, device=q_BHTD.device)
    start_BT = at_T.new_zeros(1, new) if start_BS is None else start_BS[:, rows - new :]
    pieces = [slice(first, first + ROWS_AT_ONCE) for first in range(0, new, ROWS_AT_ONCE)]
    parts = [_rows(q_BHTD[:, :, at].to(wide) * scale, at_T[at], start_BT[:, at], blocks) for at in pieces]
    out, lse = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    return out.to(q_BHTD.dtype), lse


def _rows(
    q_BHtD: torch.Tensor, at_t: torch.Tensor, start_Bt: torch.Tensor, blocks: Blocks
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of some query rows, already scaled, and the log of their sums of weights."""
    batch, heads, rows, dim = q_BHtD.shape
    groups, block = blocks.k_BGND.shape[1], blocks.row_BNC.shape[2]
    own_Bt = start_Bt + (at_t - start_Bt).div(block, rounding_mode="floor") * block
    text_Bt1 = (at_t >= start_Bt)[..., None]
    own_BtN = (blocks.first_BN[:, None] == own_Bt[..., None]) & text_Bt1
    past_BtN = (blocks.first_BN[:, None] < own_Bt[..., None]) & text_Bt1
    past_BtN = past_BtN & (blocks.first_BN[:, None] >= start_Bt[..., None])
    reached_BtNC = own_BtN[..., None] & (blocks.row_BNC[:, None] <= at_t[:, None, None])
    seen_B1tNC = (blocks.regular_BNC[:, None] & (reached_BtNC | past_BtN[..., None]))[:, None]
    past_B1tN = past_BtN[:, None]
    q_BGJtD = q_BHtD.view(batch, groups, heads // groups * rows, dim)
    score_BHtNC = (q_BGJtD @ blocks.k_BGND.mT).view(batch, heads, rows, -1, block)
    # What a landmark's logit has above its block's own sum of weights moves all rows of the block; own rows stay.
    local_BHtN = score_BHtNC[..., :-1].masked_fill(~past_B1tN[..., None], 0.0).logsumexp(-1)
    bias_BHtN = (score_BHtNC[..., -1] - local_BHtN).masked_fill(~past_B1tN, 0.0)
    logit_BHtS = (score_BHtNC + bias_BHtN[..., None]).masked_fill(~seen_B1tNC, -torch.inf).flatten(3)
    none_B1t1 = ~seen_B1tNC.flatten(3).any(-1, keepdim=True)
    logit_BHtS = logit_BHtS.masked_fill(none_B1t1, 0.0)  # padding: a softmax over nothing would be NaN, and spread
    weight_BGJtS = logit_BHtS.softmax(-1).view(batch, groups, -1, logit_BHtS.shape[-1])
    out_BHtD = (weight_BGJtS @ blocks.v_BGND).view(q_BHtD.shape).masked_fill(none_B1t1, 0.0)
    return out_BHtD, logit_BHtS.logsumexp(-1).masked_fill(none_B1t1[..., 0], -torch.inf)


def lay_out(k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, block: int, start_BS: torch.Tensor | None) -> Blocks:
    """Lay keys and values out by blocks of their documents.

    Args:
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        block: C.
        start_BS: (B, S) first row of each row's document, or None.

    Returns:
        The blocks; padding is in none.
    """
    rows = k_BGSD.shape[2]
    if start_BS is None:
        start_BS = torch.zeros(1, rows, dtype=torch.long, device=k_BGSD.device)
        first_BN = torch.arange(0, rows, block, device=k_BGSD.device)[None]
    else:
        first_BN = first_rows(start_BS, block)
    row_BNC = first_BN[..., None] + torch.arange(block, device=k_BGSD.device)
    inside_BNC = row_BNC < rows
    at_BNC = row_BNC.clamp(max=rows - 1)
    own_BNC = start_BS.gather(1, at_BNC.flatten(1)).view_as(at_BNC)
    inside_BNC = inside_BNC & (own_BNC == own_BNC[..., :1])
    regular_BNC = inside_BNC & (torch.arange(block, device=k_BGSD.device) < block - 1)
    batch, groups, _, dim = k_BGSD.shape
    index = at_BNC.flatten(1)[:, None, :, None].expand(batch, groups, -1, dim)
    hidden = ~inside_BNC.flatten(1)[:, None, :, None]
    k_BGND, v_BGND = (part.gather(2, index).masked_fill(hidden, 0.0) for part in (k_BGSD, v_BGSD))
    return Blocks(first_BN, row_BNC, regular_BNC, k_BGND, v_BGND)


def first_rows(start_BS: torch.Tensor, block: int) -> torch.Tensor:
    """Find where blocks begin.

    Args:
        start_BS: (B, S) first row of each row's document.
        block: C.

    Returns:
        (B, N) rows, ascending, S where a sequence has fewer blocks than the one with most.
    """
    rows = start_BS.shape[1]
    place_BS = torch.arange(rows, device=start_BS.device) - start_BS
    begins_BS = (place_BS >= 0) & (place_BS % block == 0)
    most = max(1, int(begins_BS.sum(-1).max()))
    row_BS = torch.arange(rows, device=start_BS.device).expand_as(start_BS)
    return row_BS.masked_fill(~begins_BS, rows).sort(-1).values[:, :most]


def check_shapes(
    q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, block: int, start_BS: torch.Tensor | None
) -> None:
    """Refuse what cannot be attended.

    Args:
        q_BHTD: (B, H, T, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        block: C.
        start_BS: (B, S) first row of each row's document, or None.

    Raises:
        ValueError: If heads do not divide, there are more queries than keys, shapes differ, or a block has no row
            beside its landmark.
    """
    heads, new = q_BHTD.shape[1:3]
    batch, groups, rows, _ = k_BGSD.shape
    if k_BGSD.shape != v_BGSD.shape or q_BHTD.shape[0] != batch or q_BHTD.shape[3] != k_BGSD.shape[3]:
        shapes = f"{tuple(q_BHTD.shape)}, {tuple(k_BGSD.shape)}, {tuple(v_BGSD.shape)}"
        raise ValueError(f"expected q (B, H, T, D) and k, v (B, G, S, D) of one B and D, got {shapes}")
    if heads % groups:
        raise ValueError(f"expected query heads divisible by KV heads, got {heads} and {groups}")
    if new > rows:
        raise ValueError(f"expected at most as many queries as keys, got {new} and {rows}")
    if block < 2:
        raise ValueError(f"expected a block of at least one row and its landmark, got block = {block}")
    if start_BS is not None and start_BS.shape != (batch, rows):
        raise ValueError(f"expected start of shape {(batch, rows)}, got {tuple(start_BS.shape)}")
