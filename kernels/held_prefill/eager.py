"""Attention of many rows to keys that leave one after the other, in plain torch.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim.
"""

from typing import NamedTuple

import torch

ROWS_AT_ONCE = 256


class Held(NamedTuple):
    """Attention over the keys still held.

    Attributes:
        out_BHTD: Weighted means of values, in the dtype of the queries; zeros where nothing is held.
        log_BHT: Logs of the sums of weights, at least float32; -inf where nothing is held.
    """

    out_BHTD: torch.Tensor
    log_BHT: torch.Tensor


def held_prefill(
    q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, leave_BGS: torch.Tensor, scale: float
) -> Held:
    """Attend causally, each query row to the keys that have not left when it comes.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        leave_BGS: (B, G, S) int32, the first query row that no longer has this key: T or more if it never leaves, 0
            for padding and holes.
        scale: Factor of the scores.

    Returns:
        Means and logs of the sums of weights.
    """
    wide = torch.promote_types(q_BHTD.dtype, torch.float32)
    batch, heads, new, dim = q_BHTD.shape
    groups, rows = k_BGSD.shape[1:3]
    keys, values = k_BGSD.to(wide), v_BGSD.to(wide)[:, :, None]
    outs, logs = [], []
    for first in range(0, new, ROWS_AT_ONCE):
        q = q_BHTD[:, :, first : first + ROWS_AT_ONCE].to(wide)
        row = torch.arange(first, first + q.shape[2], device=q.device)[:, None]
        seen = (torch.arange(rows, device=q.device) - (rows - new) <= row) & (leave_BGS[:, :, None] > row)
        lines = q.reshape(batch, groups, -1, dim)
        score = (lines @ keys.mT).view(batch, groups, heads // groups, -1, rows) * scale
        score = score.masked_fill(~seen[:, :, None], -torch.inf)
        log = score.logsumexp(-1, keepdim=True)
        weight = (score - log.masked_fill(log == -torch.inf, 0.0)).exp()
        outs.append((weight @ values).flatten(1, 2))
        logs.append(log.flatten(1, 2)[..., 0])
    return Held(torch.cat(outs, 2).to(q_BHTD.dtype), torch.cat(logs, 2))
