"""Decode attention of the rows above a threshold; the mean of the values may have the weight of those dropped.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, N = G or H sets of rows.
"""

import torch

from ..dense_decode import OP as DENSE_DECODE
from ..lowrank_score import OP as LOWRANK_SCORE
from ..op import Case, Comparison, Inputs, Op, compare_values
from ..shapes import CASES
from .eager import theta_decode

# How the sets of a case are compared and compensated, so that all ways are verified.
TERMS = {"max": ("pre", "exact"), "sum": ("post", "exact"), "none": ("pre", "threshold")}
# Of the sets so many may be decided by rounding, where a row lies at the threshold, without a look at which row it is.
MOST_APART = 0.01
# Of the largest score: what sums in float32 differ by, in another order.
ROUNDING = 2.0**-17


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case, with thresholds between the scores of two rows; K of them are above.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `theta_decode`.
    """
    inputs = DENSE_DECODE.make(case, device, seed)
    placement, missing = TERMS[case.reduce]
    names = ("q_BHD", "k_BGSD", "lo_B", "hi_B")
    score_BHS = LOWRANK_SCORE(*(inputs[name] for name in names), "none") * inputs["scale"]
    signal_BHS = score_BHS if placement == "pre" else score_BHS.softmax(-1)
    if case.reduce != "none":
        signal_BHS = signal_BHS.unflatten(1, (case.kv_heads, -1)).amax(2)
    threshold_BN = _apart(signal_BHS.nan_to_num(float("-inf")), case.kept)
    given_BH = torch.full((case.batch, case.q_heads), 0.5, device=device)
    seen = torch.arange(case.rows, device=device)
    seen_BS = (seen >= inputs["lo_B"][:, None]) & (seen < inputs["hi_B"][:, None])
    sum_BGD = inputs["v_BGSD"].float().masked_fill(~seen_BS[:, None, :, None], 0.0).sum(2)
    return inputs | {
        "threshold_BN": threshold_BN,
        "placement": placement,
        "missing": missing,
        "given_BH": given_BH,
        "factor": 0.75,
        "sum_BGD": None if case.reduce == "none" else sum_BGD,
        "context_B": seen_BS.sum(-1).int(),
    }


def _apart(signal_BNS: torch.Tensor, kept: int) -> torch.Tensor:
    """Thresholds that K rows exceed or, of many rows, a few more: where two scores lie farthest apart.

    Rows of a text that comes twice have equal scores; between such no threshold is the same to both twins.
    """
    more = 1 + kept // 64
    best = signal_BNS.topk(min(kept + more, signal_BNS.shape[-1]), -1).values[..., -more - 1 :]
    if best.shape[-1] == 1:
        return best[..., 0]
    at = best.diff(dim=-1).nan_to_num(0.0).argmin(-1, keepdim=True)
    found: torch.Tensor = (best.gather(-1, at) + best.gather(-1, at + 1))[..., 0] / 2
    return found


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: keys read once, values of K rows a set, queries and sums read, output written.

    Args:
        case: All of its rows count as visible; sets of one KV head may share rows, which saves some of this.

    Returns:
        Bytes.
    """
    kept = min(case.kept * case.sets // case.kv_heads, case.rows)
    cache = case.batch * case.kv_heads * (case.rows + kept) * case.head_dim
    sums = 0 if case.reduce == "none" else 4 * case.batch * case.kv_heads * case.head_dim
    return (cache + 2 * case.batch * case.q_heads * case.head_dim) * case.item_bytes + sums


def flops(case: Case) -> int:
    """Count the operations of the scores and of the values kept.

    Args:
        case: All of its rows count as visible.

    Returns:
        Floating-point operations.
    """
    return 2 * case.batch * case.q_heads * (case.rows + case.kept) * case.head_dim


def compare(inputs: Inputs, output: tuple[torch.Tensor, ...], reference: tuple[torch.Tensor, ...]) -> Comparison:
    """Compare outputs and what they lack, of the sets that are of one size.

    The others must be very few, or hold so few rows more or less as lie at the threshold.

    Args:
        inputs: What was attended to.
        output: out_BHD, lack_BH, count_BG.
        reference: The same in float64.

    Returns:
        The largest difference, or that too many sets differ.
    """
    same_BG = output[2] == reference[2]
    apart = int((~same_BG).sum())
    if apart > MOST_APART * same_BG.numel():
        apart = int(((output[2] - reference[2]).abs() > at_threshold(inputs)).sum())
    if apart > MOST_APART * same_BG.numel():
        return Comparison(float("inf"), 0.0, f"{apart} of {same_BG.numel()} sets hold another number of rows")
    same_BH = same_BG.repeat_interleave(inputs["q_BHD"].shape[1] // same_BG.shape[1], 1)
    out = compare_values(inputs, output[0][same_BH], reference[0][same_BH])
    lack = compare_values(inputs, output[1][same_BH], reference[1][same_BH])
    return max(out, lack, key=lambda found: (bool(found.reason), found.error))


def at_threshold(inputs: Inputs) -> torch.Tensor:
    """Count the rows of each set whose rank rounding may carry over the threshold.

    Args:
        inputs: What was attended to.

    Returns:
        (B, G), rows that some head of the group ranks there.
    """
    ranked = {"q_BHR": inputs["q_BHD"], "k_BGSR": inputs["k_BGSD"], "lo_B": inputs["lo_B"], "hi_B": inputs["hi_B"]}
    score_BHS = LOWRANK_SCORE.reference(ranked | {"reduce": "none"}) * inputs["scale"]
    heads, groups, sets = score_BHS.shape[1], inputs["k_BGSD"].shape[1], inputs["threshold_BN"].shape[1]
    threshold_BHS = inputs["threshold_BN"].double().repeat_interleave(heads // sets, 1)[..., None]
    reach_BHS = ROUNDING * score_BHS.nan_to_num(0.0, 0.0, 0.0).abs().amax(-1, keepdim=True)
    if inputs["placement"] == "post":
        score_BHS, threshold_BHS = score_BHS.log_softmax(-1), threshold_BHS.log()
    near_BHS = (score_BHS - threshold_BHS).abs() <= reach_BHS
    return near_BHS.unflatten(1, (groups, -1)).any(2).sum(-1)


OP = Op("theta_decode", "5", __name__, theta_decode, make, moved_bytes, flops, CASES, compare)
