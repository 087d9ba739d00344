"""Rows above a threshold within bounds, as they are scored, and the share of weight that they have.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, R dims, X segments.
"""

import math
from dataclasses import replace

import torch

from ..lowrank_score import OP as LOWRANK_SCORE
from ..op import Case, Comparison, Inputs, Op, compare_values
from ..shapes import CASES
from ..threshold_score import chosen_rows
from ..threshold_score import flops as score_flops
from ..threshold_score import moved_bytes as score_bytes
from ..tiling import gather_plan, multiprocessors, theta_segments
from .eager import theta_rows

NAMES = ("q_BHR", "k_BGSR", "lo_B", "hi_B")


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; K rows pass. In ragged cases some sets hold none and one holds all, out of bounds.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `theta_rows`.
    """
    inputs = LOWRANK_SCORE.make(replace(case, reduce="max"), device, seed)
    del inputs["reduce"]
    scale = case.head_dim**-0.5
    threshold_BG = between_best(LOWRANK_SCORE(*inputs.values(), "max") * scale, case.kept)
    least_B = torch.full_like(inputs["lo_B"], max(1, case.kept // 2))
    if case.visible == "ragged":
        threshold_BG[:, ::2] = 1e4
        threshold_BG[0, -1] = float("-inf")
    bounds = {"least_B": least_B, "most_B": torch.full_like(least_B, 2 * case.kept)}
    return inputs | {"scale": scale, "threshold_BG": threshold_BG, **bounds, "segments": segments_of(case, device)}


def segments_of(case: Case, device: torch.device) -> int:
    """Choose the segments as the method `loki_theta` does.

    Args:
        case: The shape.
        device: Where the kernels run.

    Returns:
        X.
    """
    pairs, count = case.batch * case.kv_heads, multiprocessors(device)
    return theta_segments(pairs, case.rows, gather_plan(pairs, case.kept, case.head_dim, case.item_bytes, count), count)


def between_best(s_BGS: torch.Tensor, kept: int) -> torch.Tensor:
    """Find a threshold that a number of scores exceed.

    Args:
        s_BGS: (B, G, S) scores, -inf for hidden rows.
        kept: How many.

    Returns:
        (B, G), between the last of them and the next; 0 or -1 where so few are visible.
    """
    best = s_BGS.topk(min(kept + 1, s_BGS.shape[-1]), -1).values
    return best[..., -2:].mean(-1).nan_to_num(0.0, 0.0, -1.0)


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: the low-rank keys and queries read, int32 rows and shares written.

    Args:
        case: All of its rows count as visible, K of them pass, and all sets keep their bounds.

    Returns:
        Bytes.
    """
    return score_bytes(case) + 4 * case.batch * case.q_heads


def compare(inputs: Inputs, output: tuple[torch.Tensor, ...], reference: tuple[torch.Tensor, ...]) -> Comparison:
    """Compare which rows were chosen: one that is chosen on one side only must lie where the choice ends.

    Args:
        inputs: What was scored.
        output: index_BGK, count_BGX, share_BH.
        reference: The same in float64.

    Returns:
        The largest distance of such a row from the last one chosen, or difference of shares where the rows are the
        same, or what is wrong with the form.
    """
    rows = inputs["k_BGSR"].shape[2]
    mine, theirs = (chosen_rows(side[0], side[1], rows) for side in (output, reference))
    if mine is None or theirs is None:
        return Comparison(math.inf, 0.0, "rows outside their segment, or not unique and ascending")
    rank_BGS = LOWRANK_SCORE.reference({name: inputs[name] for name in NAMES} | {"reduce": "max"}) * inputs["scale"]
    last_BG1 = rank_BGS.masked_fill(~theirs, math.inf).amin(-1, keepdim=True)
    apart = torch.where(mine != theirs, (rank_BGS - last_BG1).abs(), 0.0)
    same_BG = (mine == theirs).all(-1)
    same_BH = same_BG.repeat_interleave(output[2].shape[1] // same_BG.shape[1], 1)
    shares = compare_values(inputs, output[2] * same_BH, reference[2] * same_BH)
    scale = float(rank_BGS.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return Comparison(max(float(apart.max()), shares.error), max(scale, shares.scale), shares.reason)


OP = Op("theta_rows", "7", __name__, theta_rows, make, moved_bytes, score_flops, CASES, compare)
