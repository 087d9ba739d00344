"""What rows that were not attended would have added, in plain torch.

Shape legend: B batch, H query heads, G KV heads, D head dim.
"""

import torch


def fill_missing(
    out_BHD: torch.Tensor, share_BH: torch.Tensor, sum_BGD: torch.Tensor | None, context_B: torch.Tensor, factor: float
) -> torch.Tensor:
    """Give the mean of all values the weight that the rows not attended would have had.

    Of the softmax over estimated scores, the chosen rows have a share p; the others count with (1 - p) times a factor.

    Args:
        out_BHD: (B, H, D) attention over the chosen rows.
        share_BH: (B, H) float32, p.
        sum_BGD: (B, G, D) float32, sums of the values of all visible rows; None if nothing takes their place.
        context_B: (B,) integers, visible rows; where there are none, the result is zero.
        factor: Of the missing weight.

    Returns:
        (B, H, D) in the dtype of the attention: out (1 - lack) + mean lack, lack being the missing weight over all.
    """
    dropped_BH = (1 - share_BH).clamp(min=0) * factor
    lack_BH1 = (dropped_BH / (share_BH + dropped_BH).clamp(min=torch.finfo(share_BH.dtype).tiny))[..., None]
    filled_BHD = out_BHD.to(lack_BH1.dtype) * (1 - lack_BH1)
    if sum_BGD is not None:
        mean_BGD = sum_BGD / context_B.clamp(min=1)[:, None, None]
        filled_BHD = filled_BHD + lack_BH1 * mean_BGD.repeat_interleave(out_BHD.shape[1] // sum_BGD.shape[1], 1)
    return filled_BHD.masked_fill((context_B == 0)[:, None, None], 0).to(out_BHD.dtype)
