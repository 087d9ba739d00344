"""The share of a softmax that lies on the rows chosen, for each query head, from scores that are known.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, K width of the index.
"""

import torch

from ..choose_by_weight import OP as CHOOSE_BY_WEIGHT
from ..op import Case, Inputs, Op
from ..shapes import CASES
from .eager import chosen_share


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Score and choose as SparQ does; in ragged cases some sequences have fewer rows than are wanted, and one none.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `chosen_share`.
    """
    inputs = CHOOSE_BY_WEIGHT.make(case, device, seed)
    index_BGK, count_BG, lse_BH = CHOOSE_BY_WEIGHT(*inputs.values())
    return {"score_BHS": inputs["score_BHS"], "lse_BH": lse_BH, "index_BGK": index_BGK, "count_BG": count_BG}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: indices, and the scores that they name, read; shares written.

    Args:
        case: Its shape; what lies in one sector with a chosen score is moved, too, and does not count.

    Returns:
        Bytes.
    """
    return 4 * case.batch * (case.q_heads * (case.kept + 2) + case.kv_heads * (case.kept + 1))


def flops(case: Case) -> int:
    """Count a difference, an exponent and a sum for each score.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    return 3 * case.batch * case.q_heads * case.kept


OP = Op("chosen_share", "1", __name__, chosen_share, make, moved_bytes, flops, CASES)
