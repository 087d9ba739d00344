"""Rows of chosen pages and of the page being written, in plain torch.

Shape legend: B batch, N sets of pages, J pages wanted at most, K = (J + 1) page rows.
"""

import torch


def page_rows(
    index_BNJ: torch.Tensor, count_BN: torch.Tensor, context_B: torch.Tensor, first_B: torch.Tensor, page: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Name the rows of whole pages, and behind them those of the page that a text's last row is in.

    Args:
        index_BNJ: (B, N, J) int32 pages, ascending, all before the last row's own.
        count_BN: (B, N) int32, how many of the J are valid.
        context_B: (B,) integers, rows of each text.
        first_B: (B,) integers, the first row of each text in the cache, from which pages count.
        page: Rows of a page.

    Returns:
        index_BNK, (B, N, K) int32 rows of the cache, ascending, -1 past the last;
        count_BN, (B, N) int32, how many they are.
    """
    batch, sets, _ = index_BNJ.shape
    own_B11 = ((context_B - 1).clamp(min=0) // page)[:, None, None]
    begun_B1 = context_B[:, None] - own_B11[..., 0] * page
    padded_BNX = torch.cat([index_BNJ, index_BNJ.new_zeros(batch, sets, 1)], -1)
    number_X = torch.arange(padded_BNX.shape[2], device=index_BNJ.device)
    page_BNX = torch.where(number_X < count_BN[..., None], padded_BNX, own_B11)
    row_BNXP = page_BNX[..., None] * page + torch.arange(page, device=index_BNJ.device)
    row_BNK = (row_BNXP + first_B[:, None, None, None]).view(batch, sets, -1)
    rows_BN = count_BN * page + begun_B1
    there_BNK = torch.arange(row_BNK.shape[2], device=index_BNJ.device) < rows_BN[..., None]
    return torch.where(there_BNK, row_BNK, -1).int(), rows_BN.int()
