"""Eviction row by row, in plain torch.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), t some of them, S key
rows, D head dim, N = 1 or G sets of rows.
"""

from typing import NamedTuple

import torch


class Walked(NamedTuple):
    """What a walk leaves.

    Attributes:
        until_BNS: The query row, counted from 0, from which on a key is no longer held: int32; T if it is held in the
            end, 0 if no row ever holds it.
        mark_BNS: Marks of the keys held in the end, at least float32; zeros elsewhere.
    """

    until_BNS: torch.Tensor
    mark_BNS: torch.Tensor


def evict_walk(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    mark_BNS: torch.Tensor,
    number_BNS: torch.Tensor,
    budget_BT: torch.Tensor,
    recent_BT: torch.Tensor,
    scale: float,
    carry: float,
    share: float,
    most: int,
) -> Walked:
    """Let the new rows in, one after the other (H2O, arXiv 2306.14048; TOVA, arXiv 2401.06104).

    Of a cache that would hold more than the budget with the new row, the key with the lowest mark leaves, the oldest
    among equals, but none of the recent ones. Then the row attends what is held, itself included, and the marks of all
    held become carry * mark + share * (its weights, summed over the query heads of the set).

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows.
        k_BGSD: (B, G, S, D) keys; those before the new rows are held from the start.
        mark_BNS: (B, N, S) float32 marks, not negative; of new rows those that they begin with.
        number_BNS: (B, N, S) int32 token numbers, which grow along S; negative where no key is to be held (padding,
            holes), and a new row of which neither evicts nor marks.
        budget_BT: (B, T) int32, most keys held by each row, itself included.
        recent_BT: (B, T) int32, last tokens that are never dropped, the row itself among them: at least 1 and at most
            the budget.
        scale: Factor of the scores.
        carry: 1 where marks add up, 0 where the last row alone marks.
        share: Factor of the weights.
        most: At least as many keys as any set holds at any time; only the fused twin needs it, which asks no device.

    Returns:
        How long each key is held, and the marks in the end.
    """
    del most
    wide = torch.promote_types(q_BHTD.dtype, torch.float32)
    keys, mark, number = k_BGSD.to(wide), mark_BNS.to(wide), number_BNS.long()
    sets, new, before = number.shape[1], q_BHTD.shape[2], keys.shape[2] - q_BHTD.shape[2]
    column_S = torch.arange(keys.shape[2], device=keys.device)
    held, until = (number >= 0) & (column_S < before), torch.full_like(number, new).masked_fill(number < 0, 0)
    for t in range(new):
        now = number[:, :, before + t, None]
        real = now >= 0
        full = held.sum(-1, keepdim=True) + 1 > budget_BT[:, t, None, None]
        old = held & (number <= now - recent_BT[:, t, None, None])
        lowest = mark.masked_fill(~old, torch.inf).argmin(-1, keepdim=True)
        leaves = torch.zeros_like(held).scatter(2, lowest, full & real & old.any(-1, keepdim=True))
        until, held = until.masked_fill(leaves, t), held & ~leaves
        held[:, :, before + t] |= real[..., 0]
        added = share * shares(q_BHTD[:, :, t : t + 1].to(wide), keys, held, scale, sets)
        mark = torch.where(real, carry * mark + added, mark)
    return Walked(until.int(), mark.masked_fill(~held, 0.0))


def shares(q_BH1D: torch.Tensor, k_BGSD: torch.Tensor, held_BNS: torch.Tensor, scale: float, sets: int) -> torch.Tensor:
    """Sum the weights of one row over the query heads of each set.

    Args:
        q_BH1D: (B, H, 1, D) queries of the row.
        k_BGSD: (B, G, S, D) keys of the same dtype.
        held_BNS: (B, N, S) bool.
        scale: Factor of the scores.
        sets: N.

    Returns:
        (B, N, S); zeros where nothing is held.
    """
    batch, heads, _, dim = q_BH1D.shape
    score = (q_BH1D.reshape(batch, k_BGSD.shape[1], -1, dim) @ k_BGSD.mT).view(batch, sets, heads // sets, -1) * scale
    held = held_BNS[:, :, None]
    return score.masked_fill(~held, -torch.inf).softmax(-1).masked_fill(~held, 0.0).sum(2)
