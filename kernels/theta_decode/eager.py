"""Decode attention of the rows whose score or weight exceeds a threshold, in plain torch.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, N = G or H sets of rows.
"""

import torch

from ..lowrank_score.eager import lowrank_score


def theta_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
    threshold_BN: torch.Tensor,
    placement: str,
    missing: str,
    given_BH: torch.Tensor,
    factor: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend to the visible rows above a threshold, or to the best row where there is none.

    The weight of rows that are dropped may be put back into the softmax's denominator (SDC of Top-Theta, arXiv
    2502.08363); then the output lacks a share of weight, which its caller gives to the mean of the values (VMC).

    Args:
        q_BHD: (B, H, D) queries; head h reads KV head h // J.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values; those of rows that no head of the group keeps may hold anything.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        scale: Factor of the scores.
        threshold_BN: (B, N) float32: N = H for each query head, N = G for the largest of its KV head's; -inf keeps all.
        placement: "pre" compares scaled scores, "post" weights after the softmax.
        missing: "none"; "exact", what the dropped rows weigh; "threshold", as if each stood at the threshold (only
            "pre"); or "given".
        given_BH: (B, H) float32, for "given": what dropped rows weigh, over exp of the largest score.
        factor: Of what is missing.

    Returns:
        out_BHD, in the dtype of the queries, zeros where nothing is visible; lack_BH, float32, the share of weight that
        is missing; count_BG, int32, rows that at least one head of the group keeps.

    Raises:
        ValueError: If placement or missing is not among these, or "threshold" is to compensate weights.
    """
    check_terms(placement, missing)
    heads, groups, sets = q_BHD.shape[1], k_BGSD.shape[1], threshold_BN.shape[1]
    score_BHS = lowrank_score(q_BHD, k_BGSD, lo_B, hi_B, "none") * scale
    seen_BHS = score_BHS > float("-inf")
    top_BH1 = score_BHS.amax(-1, keepdim=True).clamp(min=torch.finfo(score_BHS.dtype).min)
    weight_BHS = (score_BHS - top_BH1).exp()
    signal_BHS = score_BHS if placement == "pre" else weight_BHS / weight_BHS.sum(-1, keepdim=True)
    rank_BNS = signal_BHS if sets == heads else signal_BHS.unflatten(1, (groups, -1)).amax(2)
    best_BN1 = rank_BNS.amax(-1, keepdim=True)
    keep_BNS = (rank_BNS > threshold_BN[..., None]) | (rank_BNS >= best_BN1)
    keep_BHS = keep_BNS.repeat_interleave(heads // sets, 1) & seen_BHS
    kept_BHS = weight_BHS * keep_BHS
    dropped_BHS = seen_BHS & ~keep_BHS
    miss_BH = given_BH.to(score_BHS.dtype) * dropped_BHS.any(-1)
    if missing == "exact":
        miss_BH = (weight_BHS * dropped_BHS).sum(-1)
    if missing == "threshold":
        threshold_BH = threshold_BN.to(score_BHS.dtype).repeat_interleave(heads // sets, 1)
        miss_BH = dropped_BHS.sum(-1) * (threshold_BH - top_BH1[..., 0]).clamp(max=0).exp()
    miss_BH = torch.zeros_like(miss_BH) if missing == "none" else miss_BH * factor
    whole_BH = (kept_BHS.sum(-1) + miss_BH).clamp(min=torch.finfo(score_BHS.dtype).tiny)
    union_BGS = keep_BHS.unflatten(1, (groups, -1)).any(2)
    v_BGSD = v_BGSD.to(score_BHS.dtype).masked_fill(~union_BGS[..., None], 0.0)
    share_BGJS = (kept_BHS / whole_BH[..., None]).unflatten(1, (groups, -1))
    out_BHD = (share_BGJS @ v_BGSD).flatten(1, 2).to(q_BHD.dtype)
    return out_BHD, miss_BH / whole_BH, union_BGS.sum(-1).to(torch.int32)


def check_terms(placement: str, missing: str) -> None:
    """Refuse what has no meaning.

    Args:
        placement: What thresholds are compared with.
        missing: What is put back into the denominator.

    Raises:
        ValueError: If one is unknown, or weights are to be compensated by a threshold of weights.
    """
    if placement not in ("pre", "post") or missing not in ("none", "exact", "threshold", "given"):
        raise ValueError(
            f"expected placement pre or post, missing none, exact, threshold or given, got {placement!r}, {missing!r}"
        )
    if placement == "post" and missing == "threshold":
        raise ValueError("expected missing among 'none', 'exact', 'given' after the softmax, got 'threshold'")
