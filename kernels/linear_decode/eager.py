"""One row that leaves added to a linear state, and the state joined with exact attention, in plain torch.

Shape legend: B batch, H query heads, G KV heads, J = H / G, F features, D head dim.
"""

from typing import NamedTuple

import torch

from ..linear_prefill.eager import relative
from ..op import Age


class Joined(NamedTuple):
    """Attention over exact rows and the state, and the state; at least float32.

    Attributes:
        out_BHD: Means of values over both.
        state_BGFD: The state, which is the one that was given.
        norm_BGF: Its sums of features.
        scale_BG: Log of the factor that both lack.
    """

    out_BHD: torch.Tensor
    state_BGFD: torch.Tensor
    norm_BGF: torch.Tensor
    scale_BG: torch.Tensor


def linear_decode(
    q_BHF: torch.Tensor,
    q_log_BH: torch.Tensor,
    k_BGF: torch.Tensor,
    k_log_BG: torch.Tensor,
    v_BGD: torch.Tensor,
    state_BGFD: torch.Tensor,
    norm_BGF: torch.Tensor,
    scale_BG: torch.Tensor,
    exact_BHD: torch.Tensor,
    exact_log_BH: torch.Tensor,
    age: Age = "new",  # noqa: ARG001
) -> Joined:
    """Add phi(k) v and phi(k) to the state, then give (e^a x + phi(q) S) / (e^a + phi(q) z), all in logs.

    x and a are what exact attention found, S and z the state with the new row. Where phi(q) z is not positive, as with
    maps that have products below zero, and where there is no state, x stands alone; where no row is exact, the state.

    Args:
        q_BHF: (B, H, F) features of the queries; head h reads KV head h // (H / G).
        q_log_BH: (B, H) logs of their factors.
        k_BGF: (B, G, F) features of the row that leaves.
        k_log_BG: (B, G) log of its factor; -inf where no row leaves.
        v_BGD: (B, G, D) its value.
        state_BGFD: (B, G, F, D) float32 sums of features times values, written.
        norm_BGF: (B, G, F) float32 sums of features.
        scale_BG: (B, G) float32 log of the factor that both lack; -inf for a state of nothing.
        exact_BHD: (B, H, D) means over the exact rows.
        exact_log_BH: (B, H) logs of their sums of weights; -inf where there are none.
        age: Not used: launches of torch do not overlap.

    Returns:
        The means, and the state.
    """
    wide = state_BGFD.dtype
    batch, groups, features, dim = state_BGFD.shape
    scale = torch.maximum(scale_BG, k_log_BG)
    decay = relative(scale_BG, scale)[..., None]
    entering = k_BGF.to(wide).masked_fill(k_log_BG[..., None] == -torch.inf, 0.0) * relative(k_log_BG, scale)[..., None]
    state_BGFD.mul_(decay[..., None]).add_(entering[..., None] * v_BGD.to(wide)[:, :, None])
    norm = norm_BGF * decay + entering
    q = q_BHF.to(wide).view(batch, groups, -1, features)
    total = (q @ norm[..., None]).view(batch, -1)
    there = total > 0
    safe = torch.where(there, total, 1.0)
    mean = (q @ state_BGFD).view(batch, -1, dim) / safe[..., None]
    top = scale[..., None].expand(q.shape[:3]).reshape(batch, -1)
    log = torch.where(there, safe.log() + q_log_BH + top, -torch.inf)
    weight = torch.sigmoid(log - exact_log_BH).masked_fill(log == -torch.inf, 0.0)[..., None]
    out = exact_BHD.to(wide) + weight * (mean - exact_BHD.to(wide))
    return Joined(out, state_BGFD, norm, scale)
