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
    sum_BGD: torch.Tensor | None,
    context_B: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend to the visible rows above a threshold, or to the best row where there is none.

    The weight of rows that are dropped may be put back into the softmax's denominator (SDC of Top-Theta, arXiv
    2502.08363); then the output lacks a share of weight, which the mean of all values may be given (VMC).

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
        sum_BGD: (B, G, D) float32, sums of the values of all visible rows; None if nothing is given what lacks.
        context_B: (B,) integers, visible rows, by which the sums are divided.

    Returns:
        out_BHD, in the dtype of the queries, zeros where nothing is visible; lack_BH, float32, the share of weight that
        is missing; count_BG, int32, rows that at least one head of the group keeps.

    Raises:
        ValueError: If placement or missing is not among these, or "threshold" is to compensate weights.
    """
    check_terms(placement, missing)
    score_BHS = lowrank_score(q_BHD, k_BGSD, lo_B, hi_B, "none") * scale
    seen_BHS, groups, threshold_BN = score_BHS > float("-inf"), k_BGSD.shape[1], threshold_BN.to(score_BHS.dtype)
    top_BH = score_BHS.amax(-1).clamp(min=torch.finfo(score_BHS.dtype).min)
    weight_BHS = (score_BHS - top_BH[..., None]).exp()
    signal_BHS = score_BHS if placement == "pre" else weight_BHS / weight_BHS.sum(-1, keepdim=True)
    keep_BHS = kept_rows(signal_BHS, threshold_BN, groups) & seen_BHS
    kept_BHS, dropped_BHS = weight_BHS * keep_BHS, seen_BHS & ~keep_BHS
    miss_BH = factor * {
        "none": lambda: torch.zeros_like(top_BH),
        "exact": lambda: (weight_BHS * dropped_BHS).sum(-1),
        "threshold": lambda: at_threshold(dropped_BHS, threshold_BN, top_BH),
        "given": lambda: given_BH.to(top_BH.dtype) * dropped_BHS.any(-1),
    }[missing]()  # fmt: skip
    whole_BH = (kept_BHS.sum(-1) + miss_BH).clamp(min=torch.finfo(score_BHS.dtype).tiny)
    union_BGS = keep_BHS.unflatten(1, (groups, -1)).any(2)
    v_BGSD = v_BGSD.to(score_BHS.dtype).masked_fill(~union_BGS[..., None], 0.0)
    share_BGJS = (kept_BHS / whole_BH[..., None]).unflatten(1, (groups, -1))
    out_BHD, lack_BH = (share_BGJS @ v_BGSD).flatten(1, 2), miss_BH / whole_BH
    if sum_BGD is not None:
        out_BHD = out_BHD + mean_of_missing(lack_BH, sum_BGD, context_B)
    return out_BHD.to(q_BHD.dtype), lack_BH, union_BGS.sum(-1).to(torch.int32)


def kept_rows(signal_BHS: torch.Tensor, threshold_BN: torch.Tensor, groups: int) -> torch.Tensor:
    """Tell which rows are above the thresholds, or the best where none is.

    Args:
        signal_BHS: (B, H, S) what is compared.
        threshold_BN: (B, N), N = H, or N = G for the largest of each group.
        groups: G.

    Returns:
        (B, H, S) whether each is.
    """
    heads, sets = signal_BHS.shape[1], threshold_BN.shape[1]
    rank_BNS = signal_BHS if sets == heads else signal_BHS.unflatten(1, (groups, -1)).amax(2)
    keep_BNS = (rank_BNS > threshold_BN[..., None]) | (rank_BNS >= rank_BNS.amax(-1, keepdim=True))
    return keep_BNS.repeat_interleave(heads // sets, 1)


def mean_of_missing(lack_BH: torch.Tensor, sum_BGD: torch.Tensor, context_B: torch.Tensor) -> torch.Tensor:
    """Give the mean of the values the weight that lacks.

    Args:
        lack_BH: (B, H), that weight over all.
        sum_BGD: (B, G, D), sums of the values of all visible rows.
        context_B: (B,) visible rows.

    Returns:
        (B, H, D).
    """
    mean_BGD = sum_BGD.to(lack_BH.dtype) / context_B.clamp(min=1)[:, None, None]
    return lack_BH[..., None] * mean_BGD.repeat_interleave(lack_BH.shape[1] // sum_BGD.shape[1], 1)


def at_threshold(dropped_BHS: torch.Tensor, threshold_BN: torch.Tensor, top_BH: torch.Tensor) -> torch.Tensor:
    """Weigh dropped rows as if each stood at the threshold.

    Args:
        dropped_BHS: (B, H, S) whether a row is dropped.
        threshold_BN: (B, N) thresholds of scores.
        top_BH: (B, H) largest scores.

    Returns:
        (B, H), over exp of the largest score.
    """
    threshold_BH = threshold_BN.repeat_interleave(top_BH.shape[1] // threshold_BN.shape[1], 1)
    return dropped_BHS.sum(-1) * (threshold_BH - top_BH).clamp(max=0).exp()


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
