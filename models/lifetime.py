"""Many rows over a memory that rows leave, each at some query row: through a kernel, without a mask of all pairs.

Shapes: B batch, H query heads, G key/value heads, N sets of rows (1 or G), T query rows, S rows held, D head dimension,
E rows attended apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.held_prefill import OP as HELD_PREFILL
from .call import Call
from .memory import Memory


def attend_held(q_BHTD: Tensor, memory: Memory, until_BNS: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend the rows that each query row still holds.

    Args:
        q_BHTD: queries of the last T rows.
        memory: holds keys and values, rows ascending.
        until_BNS: query row t, counted from 0, holds a row if t is less; 0 hides it.
        scale: factor of q.k.

    Returns:
        [B, H, T, D] float32, and [B, H, T] the log of each row's sum of exp(scores).
    """
    k, v = memory.keys.view, memory.values.view
    out, lse = HELD_PREFILL(q_BHTD, k, v, until_BNS.int().expand(-1, k.shape[1], -1), scale)
    return out, lse


def held_count(until_BNS: Tensor, call: Call) -> Tensor:
    """How many rows each of T query rows holds, itself included, [B, N, T].

    Of all rows that have come, those are missing that left since; what is never held leaves when it comes.
    """
    held, device = until_BNS.shape[2], until_BNS.device
    arrival_S, never_S, come_T = call.in_pass(("arrival", held, call.new, device), lambda: _arrival(held, call, device))
    leaves = until_BNS.long().clamp(min=arrival_S, max=never_S)
    gone = leaves.new_zeros(*leaves.shape[:2], call.new + 1)
    gone.scatter_add_(2, leaves, torch.ones_like(leaves))
    return come_T - gone[..., : call.new].cumsum(-1)


def _arrival(held: int, call: Call, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """[S] the query row with which each row held came, 0 for earlier ones, and T; [T] how many have come with each."""
    arrival_S = (torch.arange(held, device=device) - (held - call.new)).clamp(min=0)
    come_T = torch.arange(held - call.new + 1, held + 1, device=device)
    return arrival_S, torch.full_like(arrival_S, call.new), come_T


def beside(out_BHTD: Tensor, lse_BHT: Tensor, scores_BHTE: Tensor, values_BGED: Tensor) -> Tensor:
    """Attend a few further rows in one softmax with what was attended already.

    Args:
        out_BHTD: attention so far.
        lse_BHT: log of its sums of exp(scores); -inf where it is of nothing.
        scores_BHTE: scaled scores of the further rows, float32; -inf where a row does not see them.
        values_BGED: their values.

    Returns:
        [B, H, T, D] float32; zeros where nothing is seen.
    """
    top = torch.maximum(lse_BHT, scores_BHTE.amax(-1)).clamp(min=torch.finfo(torch.float32).min)
    before, weights = (lse_BHT - top).exp(), (scores_BHTE - top[..., None]).exp()
    groups = values_BGED.shape[1]
    added = weights.unflatten(1, (groups, -1)).flatten(2, 3) @ values_BGED.float()
    total = (before + weights.sum(-1)).clamp(min=torch.finfo(torch.float32).tiny)
    return (out_BHTD * before[..., None] + added.view(out_BHTD.shape)) / total[..., None]
