"""Scores held against the threshold of each set as they are computed: only the rows that pass are written.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, R dims, X segments, W rows of a segment.
"""

import math
from dataclasses import replace

import torch

from ..lowrank_score import OP as LOWRANK_SCORE
from ..op import Case, Comparison, Inputs, Op
from ..shapes import CASES
from ..threshold_compact import kth_best
from ..tiling import gather_plan, multiprocessors
from .eager import threshold_score


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; K rows pass. A set for each query head becomes one for each KV head.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `threshold_score`.
    """
    case = replace(case, reduce="max" if case.reduce == "none" else case.reduce)
    inputs = LOWRANK_SCORE.make(case, device, seed)
    threshold_BG = kth_best(LOWRANK_SCORE(*inputs.values()), case.kept)
    return inputs | {"threshold_BG": threshold_BG, "segments": segments_of(case, device)}


def segments_of(case: Case, device: torch.device) -> int:
    """Choose as many segments as attention over as many rows without segments has blocks for each set.

    Args:
        case: The shape.
        device: Where the kernels run.

    Returns:
        X.
    """
    pairs = case.batch * case.kv_heads
    plan = gather_plan(pairs, case.kept, case.head_dim, case.item_bytes, multiprocessors(device))
    return plan.splits


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: the low-rank keys and queries read, int32 rows written.

    Args:
        case: All of its rows count as visible, and K of them pass.

    Returns:
        Bytes.
    """
    read = case.batch * (case.kv_heads * case.rows + case.q_heads) * case.low_dims * case.item_bytes
    return read + 4 * case.batch * case.kv_heads * case.kept


def flops(case: Case) -> int:
    """Count the operations of the matrix product.

    Args:
        case: All of its rows count as visible.

    Returns:
        Floating-point operations.
    """
    return 2 * case.batch * case.q_heads * case.rows * case.low_dims


def compare(
    inputs: Inputs, output: tuple[torch.Tensor, torch.Tensor], reference: tuple[torch.Tensor, torch.Tensor]
) -> Comparison:
    """Compare which rows were chosen: one that is chosen on one side only must lie at the threshold.

    Args:
        inputs: What was scored.
        output: index_BGK and count_BGX.
        reference: The same of the reference.

    Returns:
        The largest distance from the threshold of a row on which the two differ, or what is wrong with the form.
    """
    rows = inputs["k_BGSR"].shape[2]
    chosen = [chosen_rows(*side, rows) for side in (output, reference)]
    if chosen[0] is None or chosen[1] is None:
        return Comparison(math.inf, 0.0, "rows outside their segment, or not unique and ascending")
    names = ("q_BHR", "k_BGSR", "lo_B", "hi_B", "reduce")
    s_BGS = LOWRANK_SCORE.reference({name: inputs[name] for name in names})
    distance_BGS = (s_BGS - inputs["threshold_BG"][..., None].double()).abs()
    error = torch.where(chosen[0] != chosen[1], distance_BGS, 0.0).max()
    return Comparison(float(error), float(s_BGS.nan_to_num(0.0, 0.0, 0.0).abs().max()))


def chosen_rows(index_BGK: torch.Tensor, count_BGX: torch.Tensor, rows: int) -> torch.Tensor | None:
    """Mark the rows that a segmented index names.

    Args:
        index_BGK: (B, G, X * W) int32.
        count_BGX: (B, G, X) int32.
        rows: S.

    Returns:
        (B, G, S) bool; nothing if rows lie outside their segment, or are not unique and ascending.
    """
    batch, sets, segments = count_BGX.shape
    index_BGXW = index_BGK.view(batch, sets, segments, -1).long()
    width = index_BGXW.shape[-1]
    valid_BGXW = torch.arange(width, device=index_BGK.device) < count_BGX[..., None]
    first_X1 = torch.arange(segments, device=index_BGK.device)[:, None] * width
    inside = (index_BGXW >= first_X1) & (index_BGXW < (first_X1 + width).clamp_max(rows))
    rising = (index_BGXW[..., 1:] > index_BGXW[..., :-1]) | ~valid_BGXW[..., 1:]
    if not bool((inside | ~valid_BGXW).all() & rising.all() & (count_BGX >= 0).all() & (count_BGX <= width).all()):
        return None
    chosen_BGS = torch.zeros(batch, sets, rows + 1, dtype=torch.bool, device=index_BGK.device)
    place_BGK = torch.where(valid_BGXW, index_BGXW, rows).flatten(2)
    return chosen_BGS.scatter(2, place_BGK, torch.ones_like(place_BGK, dtype=torch.bool))[..., :rows]


OP = Op("threshold_score", "3", __name__, threshold_score, make, moved_bytes, flops, CASES, compare)
