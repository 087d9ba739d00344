"""Attention of one row to all rows held, which leaves its weights on them, in plain torch.

Shape legend: B batch, H query heads, G KV heads, N sets of heads, S rows in the cache, D head dim.
"""

from typing import NamedTuple

import torch

from ..visible import visible_rows


class Marked(NamedTuple):
    """Attention, and the marks.

    Attributes:
        out_BHD: Weighted means of values, in the dtype of the queries; zeros where nothing is visible.
        log_BH: Logs of the sums of weights, at least float32; -inf where nothing is visible.
        marks_BGS: The marks, which are those that were given.
    """

    out_BHD: torch.Tensor
    log_BH: torch.Tensor
    marks_BGS: torch.Tensor


def marked_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
    marks_BGS: torch.Tensor,
    carry: float,
    sets: int,
) -> Marked:
    """Attend the visible rows, and mark them: carry * mark + the weights of a set's heads, summed.

    H2O (arXiv 2306.14048) adds up the weights of each group; TOVA (arXiv 2401.06104) has the last row's, of all heads.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        scale: Factor of the scores.
        marks_BGS: (B, G, S) float32, written where rows are visible; (B, G, 0) where no marks are kept.
        carry: Factor of the marks that there are.
        sets: N, sets of heads whose weights are summed: G, or 1 where KV heads are marked alike.

    Returns:
        Means, logs of the sums of weights, and the marks.
    """
    wide = torch.promote_types(q_BHD.dtype, torch.float32)
    batch, groups, rows, _ = k_BGSD.shape
    q = q_BHD.to(wide).view(batch, groups, -1, q_BHD.shape[2])
    score = (q @ k_BGSD.to(wide).mT) * scale
    seen = visible_rows(lo_B, hi_B, rows)[:, :, None]
    score = score.masked_fill(~seen, -torch.inf)
    log = score.logsumexp(-1, keepdim=True)
    weight = (score - log.masked_fill(log == -torch.inf, 0.0)).exp()
    values = v_BGSD.to(wide).masked_fill(~seen.mT, 0.0)
    if marks_BGS.shape[2]:
        gained = weight.view(batch, sets, -1, rows).sum(2).repeat_interleave(groups // sets, 1)
        carried = carry * marks_BGS if carry else torch.zeros_like(marks_BGS)  # not even NaN is kept
        marks_BGS.copy_(torch.where(seen[:, :, 0], carried + gained, marks_BGS))
    return Marked((weight @ values).flatten(1, 2).to(q_BHD.dtype), log.flatten(1), marks_BGS)
