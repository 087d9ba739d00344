"""Attention of many rows to the keys above a threshold, in plain torch.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), t some of them, S key
rows, D head dim, R dims of the ranks, N = G or H sets of rows.
"""

from typing import Literal, NamedTuple

import torch

from ..kth_score.eager import ROWS_AT_ONCE, causal
from ..op import Reduce

Weigh = Literal["scores", "ranks"]


def check_weigh(weigh: str) -> None:
    """Refuse weights that have no kernel.

    Args:
        weigh: What a user asked for.

    Raises:
        ValueError: If it is neither "scores" nor "ranks".
    """
    if weigh not in ("scores", "ranks"):
        raise ValueError(f"expected weigh among scores, ranks, got {weigh!r}")


class Kept(NamedTuple):
    """What was attended, and what was left.

    Attributes:
        out_BHTD: Attention to the keys kept, weights of which sum to one; zeros where none was.
        top_BHT: Largest scaled score (or rank) of all visible keys; -inf where none is visible.
        kept_BHT: Sum of exp(score - top) over the keys kept.
        total_BHT: The same over all visible keys.
        count_BNT: Keys kept, int32.
        read_BGT: Keys that any query head of the group keeps, int32.
    """

    out_BHTD: torch.Tensor
    top_BHT: torch.Tensor
    kept_BHT: torch.Tensor
    total_BHT: torch.Tensor
    count_BNT: torch.Tensor
    read_BGT: torch.Tensor


def threshold_prefill(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    rank_q_BHTR: torch.Tensor,
    rank_k_BGSR: torch.Tensor,
    threshold_BNT: torch.Tensor,
    shift_BHT: torch.Tensor | None,
    first_B: torch.Tensor,
    scale: float,
    reduce: Reduce,
    weigh: Weigh = "scores",
) -> Kept:
    """Attend, causally, exactly the keys whose rank exceeds the threshold of their row.

    A key's rank is scale * (rank query . rank key) - shift of the row and head; with "max" the largest of the group.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        rank_q_BHTR: (B, H, T, R) queries of the ranks; the queries themselves where exact scores rank.
        rank_k_BGSR: (B, G, S, R) keys of the ranks; the keys themselves where exact scores rank.
        threshold_BNT: (B, N, T) float32; a key is kept if its rank is strictly above.
        shift_BHT: (B, H, T) float32 subtracted from each head's ranks (its log of the sum of weights, where weights
            after the softmax are compared), or None.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the scores and of the ranks.
        reduce: "max": one set for the query heads of a KV head (N = G); "none": one for each (N = H).
        weigh: By what the largest score and both sums are: "scores", or each head's own "ranks", not shifted.

    Returns:
        What was kept and what was left.

    Raises:
        ValueError: If `weigh` is neither.
    """
    check_weigh(weigh)
    wide = torch.promote_types(q_BHTD.dtype, torch.float32)
    tensors = [part.to(wide) for part in (k_BGSD, v_BGSD, rank_k_BGSR)]
    parts = []
    for at in range(0, q_BHTD.shape[2], ROWS_AT_ONCE):
        rows = slice(at, at + ROWS_AT_ONCE)
        queries = q_BHTD[:, :, rows].to(wide), rank_q_BHTR[:, :, rows].to(wide)
        shift = 0.0 if shift_BHT is None else shift_BHT[:, :, rows, None]
        seen = causal(first_B, queries[0].shape[2], k_BGSD.shape[2], k_BGSD.shape[2] - q_BHTD.shape[2] + at)
        rank = _scores(queries[1], tensors[2], scale)
        keep, count = _keep(rank - shift, threshold_BNT[:, :, rows], seen, k_BGSD.shape[1], reduce)
        score = _scores(queries[0], tensors[0], scale)
        out = _attend(score, tensors[1], keep & seen)
        parts.append((out, *_sums(rank if weigh == "ranks" else score, keep, seen), *count))
    out, *rest = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    return Kept(out.to(q_BHTD.dtype), *rest)


def _scores(q_BHtD: torch.Tensor, k_BGSD: torch.Tensor, scale: float) -> torch.Tensor:
    batch, heads, rows, dim = q_BHtD.shape
    q_BGJtD = q_BHtD.reshape(batch, k_BGSD.shape[1], -1, dim)
    return (q_BGJtD @ k_BGSD.mT).view(batch, heads, rows, -1) * scale


def _keep(
    rank_BHtS: torch.Tensor, threshold_BNt: torch.Tensor, seen_B1tS: torch.Tensor, groups: int, reduce: Reduce
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Keys kept by each query head [B, H, t, S], how many by each set, and by each group together."""
    batch, heads, rows, held = rank_BHtS.shape
    rank_BNtS = rank_BHtS.view(batch, groups, -1, rows, held).amax(2) if reduce == "max" else rank_BHtS
    keep_BNtS = (rank_BNtS > threshold_BNt[..., None]) & seen_B1tS
    keep_BHtS = keep_BNtS.repeat_interleave(heads // keep_BNtS.shape[1], 1)
    read_BGt = keep_BHtS.view(batch, groups, -1, rows, held).any(2).sum(-1)
    return keep_BHtS, (keep_BNtS.sum(-1).int(), read_BGt.int())


def _attend(score_BHtS: torch.Tensor, v_BGSD: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """What may be far below the largest score of all is weighed among the keys kept, or it would be lost."""
    batch, groups = v_BGSD.shape[:2]
    share_BHtS = score_BHtS.masked_fill(~keep, -torch.inf).softmax(-1).masked_fill(~keep, 0.0)
    out_BGJtD = share_BHtS.reshape(batch, groups, -1, share_BHtS.shape[-1]) @ v_BGSD
    return out_BGJtD.view(*score_BHtS.shape[:3], -1)


def _sums(score_BHtS: torch.Tensor, keep: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Largest score, and sums of the weights kept and of all."""
    score_BHtS = score_BHtS.masked_fill(~seen, -torch.inf)
    top_BHt1 = score_BHtS.amax(-1, keepdim=True)
    weight_BHtS = (score_BHtS - top_BHt1.clamp(min=torch.finfo(score_BHtS.dtype).min)).exp()
    return top_BHt1[..., 0], weight_BHtS.masked_fill(~keep, 0.0).sum(-1), weight_BHtS.sum(-1)
