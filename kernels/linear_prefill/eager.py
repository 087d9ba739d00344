"""Causal linear attention over features, chunk by chunk, in plain torch.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows and rows that enter, F features, D head dim.
"""

from typing import NamedTuple

import torch

CHUNK = 64


class Linear(NamedTuple):
    """Attention over exact rows and all that entered, and the state in the end, that at least float32.

    Attributes:
        out_BHTD: Means of values over both, in the dtype of the exact ones.
        state_BGFD: Sums of features times values, over exp(scale).
        norm_BGF: Sums of features, over exp(scale).
        scale_BG: Largest log that entered; -inf where nothing did.
    """

    out_BHTD: torch.Tensor
    state_BGFD: torch.Tensor
    norm_BGF: torch.Tensor
    scale_BG: torch.Tensor


def linear_prefill(
    q_BHTF: torch.Tensor,
    q_log_BHT: torch.Tensor,
    k_BGTF: torch.Tensor,
    v_BGTD: torch.Tensor,
    log_BGT: torch.Tensor,
    state_BGFD: torch.Tensor,
    norm_BGF: torch.Tensor,
    scale_BG: torch.Tensor,
    exact_BHTD: torch.Tensor,
    exact_log_BHT: torch.Tensor,
) -> Linear:
    """Attend with weights q . k exp(log) of features of any map (Katharopoulos et al., arXiv 2006.16236, equation 12).

    The result joins what exact attention found: (e^a x + sum of w v) / (e^a + sum of w), in logs, x and a its means and
    logs. Where the sum of w is not positive, as products of polynomials may be, and where nothing entered, x stands
    alone.

    One row enters with each query row: that sees what entered with rows 0 to t, and through the state whatever came
    before. A caller whose rows enter late (a window of exact attention) passes queries that much later than keys.
    Sums are kept over the largest factor so far, so no factor overflows and a later one changes no earlier row.

    Args:
        q_BHTF: (B, H, T, F) features of queries; head h reads KV head h // (H / G).
        q_log_BHT: (B, H, T) logs of their factors.
        k_BGTF: (B, G, T, F) features of the rows that enter.
        v_BGTD: (B, G, T, D) their values.
        log_BGT: (B, G, T) logs of their factors, at least float32; -inf where no row enters, whatever stands there.
        state_BGFD: (B, G, F, D) float32 state before the first row.
        norm_BGF: (B, G, F) float32 likewise.
        scale_BG: (B, G) float32 log of the factor that both lack; -inf for a state of nothing.
        exact_BHTD: (B, H, T, D) means over the exact rows.
        exact_log_BHT: (B, H, T) logs of their sums of weights; -inf where there are none.

    Returns:
        Means, and the state after the last row.
    """
    wide = torch.promote_types(q_BHTF.dtype, torch.float32)
    batch, _, rows, features = q_BHTF.shape
    groups = k_BGTF.shape[1]
    q_BGJTF = q_BHTF.to(wide).view(batch, groups, -1, rows, features)
    k, v, state, norm = (part.to(wide) for part in (k_BGTF, v_BGTD, state_BGFD, norm_BGF))
    top_BGT = torch.maximum(log_BGT, scale_BG[..., None]).cummax(-1).values
    k, v = (part.masked_fill(log_BGT[..., None] == -torch.inf, 0.0) for part in (k, v))
    means, logs, scale = [], [], scale_BG
    for first in range(0, rows, CHUNK):
        at = slice(first, first + CHUNK)
        q, top, log = q_BGJTF[:, :, :, at], top_BGT[:, :, at], log_BGT[:, :, at]
        factor_BGtt = relative(log[:, :, None], top[..., None]).tril()
        weight_BGJtt = (q @ k[:, :, None, at].mT) * factor_BGtt[:, :, None]
        before_BGt1 = relative(scale[..., None], top)[:, :, None, :, None]
        sums = weight_BGJtt @ v[:, :, None, at] + (q @ state[:, :, None]) * before_BGt1
        total = weight_BGJtt.sum(-1, keepdim=True) + (q @ norm[:, :, None, :, None]) * before_BGt1
        there = total > 0
        means.append(torch.where(there, sums / torch.where(there, total, 1.0), 0.0))
        logs.append(torch.where(there, torch.where(there, total, 1.0).log() + top[:, :, None, :, None], -torch.inf))
        entering = k[:, :, at] * relative(log, top[..., -1:])[..., None]
        decay = relative(scale, top[..., -1])[..., None]
        state = state * decay[..., None] + entering.mT @ v[:, :, at]
        norm, scale = norm * decay + entering.sum(2), top[..., -1]
    mean, log = torch.cat(means, 3).flatten(1, 2), torch.cat(logs, 3).flatten(1, 2)[..., 0] + q_log_BHT
    weight = torch.sigmoid(log - exact_log_BHT).masked_fill(log == -torch.inf, 0.0)[..., None]
    out = exact_BHTD.to(wide) + weight * (mean - exact_BHTD.to(wide))
    return Linear(out.to(exact_BHTD.dtype), state, norm, scale)


def relative(log: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """Give exp(log - top), and nothing where log is the log of nothing.

    Args:
        log: Any shape.
        top: A shape that broadcasts with it.

    Returns:
        The quotient of the two factors.
    """
    return (log - top).exp().masked_fill(log == -torch.inf, 0.0)
