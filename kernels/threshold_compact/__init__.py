"""Choice of every row whose score reaches the threshold of its set, in ascending order of rows.

Shape legend: B batch, N sets of rows, S rows in the cache, K width of the result.
"""

import torch

from ..op import Case, Inputs, Op
from ..select_topk import compare
from ..select_topk import make as make_scores
from ..shapes import CASES
from .eager import threshold_compact


def slack(kept: int) -> int:
    """Give the width that leaves room for a quarter more rows than are expected.

    Args:
        kept: Rows expected.

    Returns:
        The width, a multiple of 16.
    """
    return -(-(kept + kept // 4) // 16) * 16


def kth_best(s_BNS: torch.Tensor, kept: int) -> torch.Tensor:
    """Give the threshold that exactly `kept` rows pass, if no scores are equal.

    Args:
        s_BNS: (B, N, S) scores.
        kept: At least 1.

    Returns:
        (B, N) float32.
    """
    return s_BNS.topk(min(kept, s_BNS.shape[-1]), dim=-1).values[..., -1].float().contiguous()


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw scores, and thresholds that K of them pass; in ragged cases some sets are over-full and one takes none.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `threshold_compact`.
    """
    s_BNS = make_scores(case, device, seed)["s_BNS"]
    threshold_BN = kth_best(s_BNS, case.kept)
    width = slack(case.kept)
    if case.visible == "ragged":
        width = case.kept
        threshold_BN[:, ::2] -= 0.5
        threshold_BN[-1, -1] = float("nan")
    return {"s_BNS": s_BNS, "threshold_BN": threshold_BN, "width": width}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: float32 scores read, int32 rows written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    return 4 * case.batch * case.sets * (case.rows + case.kept)


def flops(case: Case) -> int:
    """Count one comparison for each score.

    Args:
        case: Its shape.

    Returns:
        Operations.
    """
    return case.batch * case.sets * case.rows


OP = Op("threshold_compact", "2", __name__, threshold_compact, make, moved_bytes, flops, CASES, compare)
