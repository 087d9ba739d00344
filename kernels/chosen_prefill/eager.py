"""Attention of many rows to pages named by bits, in plain torch.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), t some of them, S key
rows, D head dim, N = G or H sets of pages, P pages, W words of 32 pages.
"""

import torch
from torch.nn.functional import pad

from ..kth_score.eager import ROWS_AT_ONCE, causal

BITS = 32


def chosen_prefill(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    bits_BNTW: torch.Tensor,
    first_B: torch.Tensor,
    page: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend, causally, the keys of the pages whose bits are set.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        bits_BNTW: (B, N, T, W) int32; bit i of word w is page 32 w + i. A page beyond the last word is not chosen.
        first_B: (B,) int32, first row that is no padding: there page 0 begins.
        page: Rows of a page.
        scale: Factor of the scores.

    Returns:
        (B, H, T, D), zeros where nothing is chosen, and (B, H, T) at least float32, the log of each row's sum of
        exp(scores), -inf there.
    """
    wide = torch.promote_types(q_BHTD.dtype, torch.float32)
    keys, values, (new, rows) = k_BGSD.to(wide), v_BGSD.to(wide), (q_BHTD.shape[2], k_BGSD.shape[2])
    page_BS = (torch.arange(rows, device=keys.device) - first_B[:, None]).clamp(min=0) // page
    parts = []
    for at in range(0, new, ROWS_AT_ONCE):
        query, words = q_BHTD[:, :, at : at + ROWS_AT_ONCE].to(wide), bits_BNTW[:, :, at : at + ROWS_AT_ONCE]
        chosen = of_words(words, page_BS[:, None, None].expand(*words.shape[:3], -1))
        keep = chosen & causal(first_B, query.shape[2], rows, rows - new + at)
        parts.append(attend_kept(query, keys, values, keep, scale))
    out, lse = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    return out.to(q_BHTD.dtype), lse


def attend_kept(
    q_BHtD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, keep_BNtS: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend the keys that a mask of 1, G or H sets allows.

    Args:
        q_BHtD: (B, H, t, D) queries.
        k_BGSD: (B, G, S, D) keys of the same dtype.
        v_BGSD: (B, G, S, D) values of the same dtype.
        keep_BNtS: (B, N, t, S) bool.
        scale: Factor of the scores.

    Returns:
        (B, H, t, D) and (B, H, t), as `chosen_prefill` returns them.
    """
    batch, heads, rows, dim = q_BHtD.shape
    groups, sets = k_BGSD.shape[1], keep_BNtS.shape[1]
    score = (q_BHtD.reshape(batch, groups, -1, dim) @ k_BGSD.mT).view(batch, heads, rows, -1) * scale
    keep = keep_BNtS.repeat_interleave(heads // sets, 1)
    score = score.masked_fill(~keep, -torch.inf)
    weight = score.softmax(-1).masked_fill(~keep, 0.0)
    out = weight.view(batch, groups, -1, weight.shape[-1]) @ v_BGSD
    return out.view(q_BHtD.shape), score.logsumexp(-1)


def as_words(keep_XP: torch.Tensor) -> torch.Tensor:
    """Pack booleans along the last dim.

    Args:
        keep_XP: (..., P) bool.

    Returns:
        (..., W) int32, 32 to a word, the first in its lowest bit.
    """
    whole = pad(keep_XP, (0, -keep_XP.shape[-1] % BITS)).unflatten(-1, (-1, BITS))
    # Halves of 16 bits: a sum of 32 would not fit into int32.
    low, high = (whole[..., part].int() << torch.arange(16, device=whole.device) for part in (slice(16), slice(16, 32)))
    return low.sum(-1, dtype=torch.int32) | (high.sum(-1, dtype=torch.int32) << 16)


def of_words(words_XW: torch.Tensor, page_XS: torch.Tensor) -> torch.Tensor:
    """Look up bits.

    Args:
        words_XW: (..., W) int32.
        page_XS: (..., S) integers, which bits.

    Returns:
        (..., S) bool, false beyond the last word.
    """
    place = (page_XS // BITS).long()
    word = words_XW.gather(-1, place.clamp(max=words_XW.shape[-1] - 1))
    return ((word >> (page_XS % BITS)) & 1).bool() & (place < words_XW.shape[-1])
