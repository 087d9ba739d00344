"""Exact choice of the best rows, in plain torch.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result.
"""

import torch


def select_topk(s_BNS: torch.Tensor, k_B: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the k rows of the highest score, the lowest rows first among equals.

    A score of -inf or NaN is never chosen; +inf always comes first, and so forces a row.

    Args:
        s_BNS: (B, N, S) scores.
        k_B: (B,) int32, rows wanted of each sequence.
        width: K; no more than this many rows are chosen.

    Returns:
        index_BNK, (B, N, K) int32, ascending, -1 past the last chosen row;
        count_BN, (B, N) int32, min(k, K, rows that can be chosen).

    Raises:
        ValueError: If `width` is not positive.
    """
    if width < 1:
        raise ValueError(f"expected a positive width, got {width}")
    rows = s_BNS.shape[-1]
    lowest = float("-inf")
    s_BNS = torch.where(s_BNS > lowest, s_BNS, lowest)
    able_BN = (s_BNS > lowest).sum(-1)
    count_BN = torch.minimum(able_BN, k_B[:, None]).clamp(0, width)
    best_BNK = s_BNS.topk(min(width, rows), dim=-1).values
    last_BN1 = best_BNK.gather(-1, (count_BN[..., None] - 1).clamp_min(0))
    above_BNS, tie_BNS = s_BNS > last_BN1, s_BNS == last_BN1
    room_BN1 = count_BN[..., None] - above_BNS.sum(-1, keepdim=True)
    chosen_BNS = above_BNS | (tie_BNS & (tie_BNS.cumsum(-1) <= room_BN1))
    # Rows that are not chosen all write to one spare slot, which is cut off: static shapes, no host sync.
    slot_BNS = torch.where(chosen_BNS, chosen_BNS.cumsum(-1) - 1, width)
    row_BNS = torch.arange(rows, dtype=torch.int32, device=s_BNS.device).expand_as(slot_BNS)
    index_BNK = torch.full((*count_BN.shape, width + 1), -1, dtype=torch.int32, device=s_BNS.device)
    index_BNK = index_BNK.scatter(-1, slot_BNS, row_BNS)[..., :width].contiguous()
    return index_BNK, count_BN.to(torch.int32)
