"""Exact choice of the rows whose softmax weights, summed over a group of heads, are largest; the last rows come first.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, X parts of a sum, K width of the result.
"""

import math

import torch

from ..op import Case, Comparison, Inputs, Op, compare_values
from ..select_topk import misformed, ordered
from ..shapes import CASES
from ..sparq_score import OP as SPARQ_SCORE
from ..sparq_score.eager import joined_parts
from .eager import choose_by_weight, ranks


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Score as SparQ does; in ragged cases some sequences have fewer rows than are wanted, and one none.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `choose_by_weight`.
    """
    inputs = SPARQ_SCORE.make(case, device, seed)
    score_BHS, part_BHX2 = SPARQ_SCORE(*inputs.values())
    k_B = torch.full_like(inputs["lo_B"], case.kept)
    spans = {"lo_B": inputs["lo_B"], "hi_B": inputs["hi_B"], "local_B": (k_B // 4).clamp_min(1)}
    return {"score_BHS": score_BHS, "part_BHX2": part_BHX2, **spans, "k_B": k_B, "groups": case.kv_heads,
            "width": case.kept}  # fmt: skip


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: float32 scores read, int32 rows and float32 sums written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    return 4 * case.batch * (case.q_heads * (case.rows + 1) + case.kv_heads * (case.kept + 1))


def flops(case: Case) -> int:
    """Count a difference, an exponent, a product and a sum for each score.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    return 4 * case.batch * case.q_heads * case.rows


def compare(inputs: Inputs, output: tuple[torch.Tensor, ...], reference: tuple[torch.Tensor, ...]) -> Comparison:
    """Compare the logs of the weights of the chosen sets; places must be unique, ascending and followed by -1 only.

    Args:
        inputs: What was chosen from.
        output: index_BGK, count_BG and lse_BH.
        reference: The same of the reference.

    Returns:
        The largest difference between the ordered logs of the two sets, in float64, or of the logs of the sums; or what
        is wrong with the form.
    """
    (index_BGK, count_BG, lse_BH), (expected_BGK, expected_BG, expected_BH) = output, reference
    if not torch.equal(count_BG, expected_BG):
        return Comparison(math.inf, 0.0, f"chose {count_BG.tolist()} rows instead of {expected_BG.tolist()}")
    reason = misformed(index_BGK, count_BG, inputs["score_BHS"].shape[-1])
    if reason:
        return Comparison(math.inf, 0.0, reason)
    rank_BGS = _exact(inputs)
    got_BGK, wanted_BGK = ordered(rank_BGS, index_BGK), ordered(rank_BGS, expected_BGK)
    error = float(torch.where(got_BGK != wanted_BGK, got_BGK - wanted_BGK, 0.0).abs().max())
    sums = compare_values(inputs, lse_BH, expected_BH)
    return Comparison(max(error, sums.error), sums.scale, sums.reason)


def _exact(inputs: Inputs) -> torch.Tensor:
    """The logs of the weights in float64: of small ones, too, a difference counts by its share of them."""
    lse_BH = joined_parts(inputs["part_BHX2"].double())
    spans = inputs["lo_B"], inputs["hi_B"], inputs["local_B"]
    rank_BGS = ranks(inputs["score_BHS"].double(), lse_BH, *spans, inputs["groups"])
    return torch.where(rank_BGS > 0, rank_BGS.log(), float("-inf"))


OP = Op("choose_by_weight", "2", __name__, choose_by_weight, make, moved_bytes, flops, CASES, compare)
