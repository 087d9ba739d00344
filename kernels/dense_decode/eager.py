"""Decode attention over the visible interval of each sequence, in plain torch.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim.
"""

import torch

from ..visible import visible_rows


def dense_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attend from one query token of each sequence to all of its visible rows.

    Rows outside the interval may hold anything, NaN included.

    Args:
        q_BHD: (B, H, D) queries; head h reads KV head h // J. Queries and keys may both be shorter than values.
        k_BGSD: (B, G, S, D) keys, any strides.
        v_BGSD: (B, G, S, D) values, any strides.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        scale: Factor of the scores.

    Returns:
        (B, H, D), D of the values, in the dtype of the queries; zeros where nothing is visible.
    """
    if lo_B.device.type == "cpu" and lo_B.numel():
        # A preallocated cache is mostly unused rows. Reading a bound synchronises nothing on a CPU.
        first, last = int(lo_B.min()), max(int(hi_B.max()), int(lo_B.min()))
        k_BGSD, v_BGSD = k_BGSD[:, :, first:last], v_BGSD[:, :, first:last]
        lo_B, hi_B = lo_B - first, hi_B - first
    wide = torch.promote_types(q_BHD.dtype, torch.float32)
    batch, heads, head_dim = q_BHD.shape
    q_BGJD = q_BHD.to(wide).view(batch, k_BGSD.shape[1], -1, head_dim)
    visible_B11S = visible_rows(lo_B, hi_B, k_BGSD.shape[2])[:, None]
    score_BGJS = (q_BGJD @ k_BGSD.to(wide).mT) * scale
    score_BGJS = score_BGJS.masked_fill(~visible_B11S, float("-inf"))
    share_BGJS = score_BGJS.softmax(-1).masked_fill(~visible_B11S, 0.0)
    # A share of zero does not silence a NaN, so hidden values are cleared as well.
    v_BGSD = v_BGSD.to(wide).masked_fill(~visible_B11S.mT, 0.0)
    return (share_BGJS @ v_BGSD).view(batch, heads, v_BGSD.shape[3]).to(q_BHD.dtype)
