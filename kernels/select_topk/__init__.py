"""Exact choice of the k best rows of each set, in ascending order of rows, without a sort.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result.
"""

import math
from dataclasses import replace

import torch

from ..drawn import asked
from ..lowrank_score import OP as LOWRANK_SCORE
from ..op import Case, Comparison, Inputs, Op
from ..shapes import CASES
from ..visible import draw_intervals, visible_rows
from .eager import select_topk


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw scores, rounded to sixteenths in ragged cases so that many are equal.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `select_topk`.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    s_BNS = torch.randn(case.batch, case.sets, case.rows, generator=generator, device=device)
    if asked() is not None:
        s_BNS = LOWRANK_SCORE(*LOWRANK_SCORE.make(replace(case, visible="full"), device, seed).values())
    k_B = torch.full((case.batch,), case.kept, dtype=torch.int32, device=device)
    if case.visible == "ragged":
        lo_B, hi_B = draw_intervals(case, device, seed)
        s_BNS = (s_BNS * 16).round() / 16
        s_BNS = s_BNS.masked_fill(~visible_rows(lo_B, hi_B, case.rows), float("-inf"))
    return {"s_BNS": s_BNS, "k_B": k_B, "width": case.kept}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: float32 scores read, int32 rows written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    return 4 * case.batch * case.sets * (case.rows + case.kept)


def flops(case: Case) -> int:
    """Count one comparison for each score: selection is not arithmetic.

    Args:
        case: Its shape.

    Returns:
        Operations.
    """
    return case.batch * case.sets * case.rows


def compare(
    inputs: Inputs, output: tuple[torch.Tensor, torch.Tensor], reference: tuple[torch.Tensor, torch.Tensor]
) -> Comparison:
    """Compare the scores of the chosen sets; places must be unique, ascending and followed by -1 only.

    Args:
        inputs: What was chosen from.
        output: index_BNK and count_BN.
        reference: The same of the reference.

    Returns:
        The largest difference between the ordered scores of the two sets, or what is wrong with the form.
    """
    (index_BNK, count_BN), (expected_BNK, expected_BN) = output, reference
    if not torch.equal(count_BN, expected_BN):
        return Comparison(math.inf, 0.0, f"chose {count_BN.tolist()} rows instead of {expected_BN.tolist()}")
    reason = misformed(index_BNK, count_BN, inputs["s_BNS"].shape[-1])
    if reason:
        return Comparison(math.inf, 0.0, reason)
    got_BNK, wanted_BNK = ordered(inputs["s_BNS"], index_BNK), ordered(inputs["s_BNS"], expected_BNK)
    different = got_BNK != wanted_BNK
    error = torch.where(different, got_BNK - wanted_BNK, 0.0).abs().max()
    return Comparison(float(error), float(wanted_BNK.nan_to_num(0.0, 0.0, 0.0).abs().max()))


def misformed(index_BNK: torch.Tensor, count_BN: torch.Tensor, rows: int) -> str:
    """Say what is wrong with the form of chosen rows.

    Args:
        index_BNK: (B, N, K) rows.
        count_BN: (B, N) how many of them count.
        rows: S.

    Returns:
        The complaint; empty if they are unique, ascending, inside the cache and followed by -1 only.
    """
    valid_BNK = torch.arange(index_BNK.shape[-1], device=index_BNK.device) < count_BN[..., None]
    if not bool((index_BNK[~valid_BNK] == -1).all()):
        return "something other than -1 past the last chosen row"
    chosen = index_BNK[valid_BNK]
    if bool(((chosen < 0) | (chosen >= rows)).any()):
        return "rows outside the cache"
    rising = (index_BNK[..., 1:] > index_BNK[..., :-1]) | ~valid_BNK[..., 1:]
    return "" if bool(rising.all()) else "rows not unique and ascending"


def ordered(s_BNS: torch.Tensor, index_BNK: torch.Tensor) -> torch.Tensor:
    """Order the scores of chosen rows.

    Args:
        s_BNS: (B, N, S) scores.
        index_BNK: (B, N, K) rows, -1 where none was chosen.

    Returns:
        (B, N, K), ascending, -inf first where none was chosen.
    """
    score_BNK = s_BNS.gather(-1, index_BNK.clamp_min(0).long())
    return score_BNK.masked_fill(index_BNK < 0, float("-inf")).sort(-1).values


OP = Op("select_topk", "8", __name__, select_topk, make, moved_bytes, flops, CASES, compare)
