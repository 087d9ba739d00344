"""Causal linear attention over features, chunk by chunk, in plain torch.

Shape legend: B batch, H query heads, G KV heads, T rows, F features, D head dim.
"""

from typing import NamedTuple

import torch

CHUNK = 64


class Linear(NamedTuple):
    """What rows get from the rows before them, and the state after the last.

    Attributes:
        sum_BHTD: Sums of values, weighted by products of features; not yet divided.
        total_BHT: Sums of the weights.
        state_BGFD: Sums of features times values.
        norm_BGF: Sums of features.
    """

    sum_BHTD: torch.Tensor
    total_BHT: torch.Tensor
    state_BGFD: torch.Tensor
    norm_BGF: torch.Tensor


def linear_prefill(
    q_BHTF: torch.Tensor, k_BGTF: torch.Tensor, v_BGTD: torch.Tensor, state_BGFD: torch.Tensor, norm_BGF: torch.Tensor
) -> Linear:
    """Attend causally with weights q . k of features of any map (Katharopoulos et al., arXiv 2006.16236, equation 12).

    Row t sees rows 0 to t, and through the state whatever came before. A caller whose rows enter the state late (a
    window of exact attention) passes queries that much later than keys.

    Args:
        q_BHTF: (B, H, T, F) features of queries; head h reads KV head h // (H / G).
        k_BGTF: (B, G, T, F) features of keys.
        v_BGTD: (B, G, T, D) values.
        state_BGFD: (B, G, F, D) float32 state before the first row; zeros for none.
        norm_BGF: (B, G, F) float32 likewise.

    Returns:
        Sums and the state after the last row, at least float32.
    """
    wide = torch.promote_types(q_BHTF.dtype, torch.float32)
    batch, _, rows, features = q_BHTF.shape
    groups = k_BGTF.shape[1]
    q_BGJTF = q_BHTF.to(wide).view(batch, groups, -1, rows, features)
    k, v, state, norm = (part.to(wide) for part in (k_BGTF, v_BGTD, state_BGFD, norm_BGF))
    sums, totals = [], []
    for first in range(0, rows, CHUNK):
        at = slice(first, first + CHUNK)
        weight_BGJtt = (q_BGJTF[:, :, :, at] @ k[:, :, None, at].mT).tril()
        sums.append(weight_BGJtt @ v[:, :, None, at] + q_BGJTF[:, :, :, at] @ state[:, :, None])
        totals.append(weight_BGJtt.sum(-1) + (q_BGJTF[:, :, :, at] @ norm[:, :, None, :, None])[..., 0])
        state, norm = state + k[:, :, at].mT @ v[:, :, at], norm + k[:, :, at].sum(2)
    return Linear(torch.cat(sums, 3).flatten(1, 2), torch.cat(totals, 3).flatten(1, 2), state, norm)
