"""SparQ's choice of keys for many query rows, in plain torch.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), t some of them, S key
rows, D head dim, W words of 32 keys.
"""

from typing import NamedTuple

import torch

from ..chosen_prefill.eager import BITS, as_words
from ..kth_score.eager import ROWS_AT_ONCE, causal


class Rows(NamedTuple):
    """What was chosen.

    Attributes:
        bits_BGTW: int32 words, as `chosen_prefill` takes them with pages of one row.
        inside_BHT: The approximate weight of each head on the keys chosen; 0 for padding.
    """

    bits_BGTW: torch.Tensor
    inside_BHT: torch.Tensor


def sparq_rows(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    factor_BHT: torch.Tensor,
    budget_BT: torch.Tensor,
    local_BT: torch.Tensor,
    first_B: torch.Tensor,
) -> Rows:
    """Choose, causally, the keys with the largest approximate weights (SparQ Attention, arXiv 2312.04985, Algorithm 1).

    Approximate weights are a softmax of factor * (q . k) over the keys that a row sees, of which the sum over the query
    heads of a KV head ranks the keys; local keys come before all others, of equal ones the first.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows, all but the leading components of their group zero.
        k_BGSD: (B, G, S, D) keys.
        factor_BHT: (B, H, T) float32, positive: the scale over the root of the magnitude's share in these components.
        budget_BT: (B, T) int32, keys of each row, local ones among them.
        local_BT: (B, T) int32, last keys of each row that are chosen in any case.
        first_B: (B,) int32, first row that is no padding.

    Returns:
        Bits of the keys chosen, and the weights on them.
    """
    wide = torch.promote_types(q_BHTD.dtype, torch.float32)
    keys, (new, rows), parts = k_BGSD.to(wide), (q_BHTD.shape[2], k_BGSD.shape[2]), []
    at_BS = torch.arange(rows, device=keys.device) + first_B[:, None]
    for begin in range(0, new, ROWS_AT_ONCE):
        some = slice(begin, begin + ROWS_AT_ONCE)
        query, factor = q_BHTD[:, :, some].to(wide), factor_BHT[:, :, some].to(wide)
        rank, weights = approximate(query, keys, factor, local_BT[:, some], first_B, new - min(new, some.stop))
        order = rank.sort(dim=-1, descending=True, stable=True).indices
        chosen = torch.arange(rows, device=keys.device) < budget_BT[:, None, some, None]
        keep = torch.zeros_like(chosen).expand_as(rank).scatter(-1, order, chosen.expand_as(rank))
        keep = keep & (rank > -torch.inf)
        inside = (weights * keep.repeat_interleave(weights.shape[1] // keep.shape[1], 1)).sum(-1)
        index = at_BS.clamp(max=rows - 1)[:, None, None].expand_as(keep)
        from_first = keep.gather(-1, index) & (at_BS < rows)[:, None, None]
        parts.append((as_words(from_first), inside))
    bits, inside = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    assert bits.shape[-1] == -(-rows // BITS)
    return Rows(bits, inside)


def approximate(
    q_BHtD: torch.Tensor,
    k_BGSD: torch.Tensor,
    factor_BHt: torch.Tensor,
    local_Bt: torch.Tensor,
    first_B: torch.Tensor,
    after: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weigh all keys of some query rows.

    Args:
        q_BHtD: (B, H, t, D) queries.
        k_BGSD: (B, G, S, D) keys of the same dtype.
        factor_BHt: (B, H, t) of the same dtype.
        local_Bt: (B, t) last keys that come first.
        first_B: (B,) first row that is no padding.
        after: Query rows after these.

    Returns:
        (B, G, t, S) ranks, +inf for local keys, -inf for those not seen; (B, H, t, S) weights, 0 for those not seen.
    """
    (batch, heads, rows, dim), (groups, held) = q_BHtD.shape, k_BGSD.shape[1:3]
    score = (q_BHtD.reshape(batch, groups, -1, dim) @ k_BGSD.mT).view(batch, heads, rows, held) * factor_BHt[..., None]
    row_t = held - after - rows + torch.arange(rows, device=q_BHtD.device)
    seen = causal(first_B, rows, held, held - after - rows)
    weights = score.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0.0)
    rank = weights.view(batch, groups, -1, rows, held).sum(2)
    local = torch.arange(held, device=q_BHtD.device) > (row_t - local_Bt)[..., None]
    return rank.masked_fill(local[:, None], torch.inf).masked_fill(~seen, -torch.inf), weights
