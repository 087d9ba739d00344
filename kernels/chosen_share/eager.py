"""The share of a softmax that lies on the rows chosen, in plain torch.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, K width of the index.
"""

import torch


def chosen_share(
    score_BHS: torch.Tensor, lse_BH: torch.Tensor, index_BGK: torch.Tensor, count_BG: torch.Tensor
) -> torch.Tensor:
    """Sum the weights exp(score - lse) of the rows chosen; all others are never read.

    Args:
        score_BHS: (B, H, S) scores; head h has the rows of set h // J.
        lse_BH: (B, H) the log of the sum of exp(score) over all rows, chosen or not.
        index_BGK: (B, G, K) int32 rows; what is past the count may be anything.
        count_BG: (B, G) int32, how many of the K are valid.

    Returns:
        (B, H) in the dtype of the scores; zero where nothing was chosen.
    """
    group = score_BHS.shape[1] // index_BGK.shape[1]
    valid_BGK = torch.arange(index_BGK.shape[2], device=index_BGK.device) < count_BG[..., None]
    row_BGK = torch.where(valid_BGK, index_BGK, 0).long()
    row_BHK, valid_BHK = (part.repeat_interleave(group, 1) for part in (row_BGK, valid_BGK))
    weight_BHK = (score_BHS.gather(-1, row_BHK) - lse_BH[..., None]).exp()
    return torch.where(valid_BHK, weight_BHK, 0.0).sum(-1)
