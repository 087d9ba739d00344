"""The scores at the border of the k best of each query row, in plain torch.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), t some of them, S key
rows, R dims of the scores, N = G or H sets of rows.
"""

import torch

from ..op import Reduce

# Query rows that are scored at once: memory grows with S, not with its square.
ROWS_AT_ONCE = 256


def kth_score(
    q_BHTR: torch.Tensor,
    k_BGSR: torch.Tensor,
    k_BNT: torch.Tensor,
    first_B: torch.Tensor,
    scale: float,
    reduce: Reduce,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the k-th and the (k+1)-th largest score of each causal row.

    Args:
        q_BHTR: (B, H, T, R) queries of the last T rows.
        k_BGSR: (B, G, S, R) keys.
        k_BNT: (B, N, T) int32, how many rows each query row keeps; negative where the border is not asked for.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the scores.
        reduce: "max" ranks once for the query heads of a KV head (N = G), "none" for each (N = H).

    Returns:
        Two (B, N, T), at least float32: the k-th largest score, +inf where k < 1, the smallest where there are no k;
        and the next, -inf where there is none, or where k is negative.

    Raises:
        ValueError: If `reduce` is neither.
    """
    check_reduce(reduce)
    wide = torch.promote_types(q_BHTR.dtype, torch.float32)
    keys, new = k_BGSR.to(wide), q_BHTR.shape[2]
    parts = []
    for at in range(0, new, ROWS_AT_ONCE):
        rows = slice(at, at + ROWS_AT_ONCE)
        rank_BNtS = ranks(q_BHTR[:, :, rows].to(wide), keys, first_B, scale, reduce, keys.shape[2] - new + at)
        parts.append(border(rank_BNtS.sort(-1, descending=True).values, k_BNT[:, :, rows]))
    kth, next_ = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    return kth, next_


def border(sorted_BNtS: torch.Tensor, k_BNt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the k-th and the (k+1)-th of ranks that fall along each row.

    Args:
        sorted_BNtS: (B, N, t, S) ranks; -inf is never kept.
        k_BNt: (B, N, t) integers, how many of each row are kept; negative where the border is not asked for.

    Returns:
        Two (B, N, t): the k-th largest, +inf where k < 1, and the next, -inf where there is none or k is negative.
    """
    many_BNt = (sorted_BNtS > -torch.inf).sum(-1)
    asked_BNt, k_BNt = k_BNt >= 0, k_BNt.long().clamp(min=0).minimum(many_BNt)
    ended = sorted_BNtS.new_full((*sorted_BNtS.shape[:3], 1), torch.inf)
    bounded = torch.cat([ended, sorted_BNtS, -ended], -1)
    kth_BNt, next_BNt = (bounded.gather(-1, k_BNt[..., None] + more)[..., 0] for more in (0, 1))
    return kth_BNt, next_BNt.masked_fill(~asked_BNt, -torch.inf)


def ranks(
    q_BHtR: torch.Tensor, k_BGSR: torch.Tensor, first_B: torch.Tensor, scale: float, reduce: Reduce, first_row: int
) -> torch.Tensor:
    """Score some query rows; what they cannot see is -inf.

    Args:
        q_BHtR: (B, H, t, R) queries.
        k_BGSR: (B, G, S, R) keys of the same dtype.
        first_B: (B,) first row that is no padding.
        scale: Factor of the scores.
        reduce: "max" or "none".
        first_row: Row of the first query.

    Returns:
        (B, N, t, S).
    """
    batch, heads, new, dims = q_BHtR.shape
    groups = k_BGSR.shape[1]
    score = (q_BHtR.reshape(batch, groups, -1, dims) @ k_BGSR.mT).view(batch, groups, heads // groups, new, -1) * scale
    rank_BNtS = score.amax(2) if reduce == "max" else score.flatten(1, 2)
    return rank_BNtS.masked_fill(~causal(first_B, new, k_BGSR.shape[2], first_row), -torch.inf)


def causal(first_B: torch.Tensor, new: int, rows: int, first_row: int) -> torch.Tensor:
    """Mark the rows that each query row sees.

    Args:
        first_B: (B,) first row that is no padding.
        new: Query rows.
        rows: S.
        first_row: Row of the first query.

    Returns:
        (B, 1, new, S) bool.
    """
    key_S = torch.arange(rows, device=first_B.device)
    row_T = torch.arange(first_row, first_row + new, device=first_B.device)
    return ((key_S >= first_B[:, None, None]) & (key_S <= row_T[:, None]))[:, None]


def check_reduce(reduce: str) -> None:
    """Refuse a reduction that has no kernel.

    Args:
        reduce: Its name.

    Raises:
        ValueError: If it is neither "max" nor "none".
    """
    if reduce not in ("max", "none"):
        raise ValueError(f"expected reduce among 'max', 'none', got {reduce!r}")
