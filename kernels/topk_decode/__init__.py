"""Attention to the k rows of each set that rank best: `lowrank_score`, `select_topk` and `gather_decode` in one.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R dims that rank, N sets, K width.
"""

import math

import torch

from ..gather_decode import OP as GATHER_DECODE
from ..lowrank_score import OP as LOWRANK_SCORE
from ..op import Case, Comparison, Inputs, Op, compare_values
from ..select_topk import OP as SELECT_TOPK
from ..select_topk import misformed, ordered
from ..shapes import CASES
from .eager import topk_decode


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; the first columns of the keys rank.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `topk_decode`.
    """
    dense = GATHER_DECODE.make(case, device, seed)
    scored = LOWRANK_SCORE.make(case, device, seed)
    attended = {name: dense[name] for name in ("q_BHD", "k_BGSD", "v_BGSD")}
    ranked = {
        "rank_q_BHR": dense["q_BHD"][..., : case.low_dims],
        "rank_k_BGSR": dense["k_BGSD"][..., : case.low_dims].contiguous(),
    }
    bounds = {name: scored[name] for name in ("lo_B", "hi_B", "reduce")}
    wanted_B = torch.full((case.batch,), case.kept, dtype=torch.int32, device=device)
    return attended | ranked | bounds | {"wanted_B": wanted_B, "width": case.kept, "scale": dense["scale"]}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes of the three stages.

    Args:
        case: All of its rows count as visible.

    Returns:
        Bytes.
    """
    return LOWRANK_SCORE.bytes(case) + SELECT_TOPK.bytes(case) + GATHER_DECODE.bytes(case)


def flops(case: Case) -> int:
    """Count the operations of the three stages.

    Args:
        case: All of its rows count as visible.

    Returns:
        Floating-point operations.
    """
    return LOWRANK_SCORE.flops(case) + SELECT_TOPK.flops(case) + GATHER_DECODE.flops(case)


def compare(inputs: Inputs, output: tuple[torch.Tensor, ...], reference: tuple[torch.Tensor, ...]) -> Comparison:
    """Compare the ranks of the rows chosen, best against best, and the attention with that to these very rows.

    Rounding can exchange rows at the border, whose values differ by more than rounding.

    Args:
        inputs: What was ranked and attended.
        output: out_BHD, index_BNK and count_BN.
        reference: The same in float64.

    Returns:
        The largest error of the attention, or what is wrong with the rows.
    """
    out_BHD, index_BNK, count_BN = output
    if not torch.equal(count_BN, reference[2]):
        return Comparison(math.inf, 0.0, f"chose {count_BN.tolist()} rows instead of {reference[2].tolist()}")
    names = {"q_BHR": "rank_q_BHR", "k_BGSR": "rank_k_BGSR", "lo_B": "lo_B", "hi_B": "hi_B", "reduce": "reduce"}
    s_BNS = LOWRANK_SCORE.reference({name: inputs[given] for name, given in names.items()})
    reason = misformed(index_BNK, count_BN, s_BNS.shape[-1])
    if reason:
        return Comparison(math.inf, 0.0, reason)
    got_BNK, wanted_BNK = ordered(s_BNS, index_BNK), ordered(s_BNS, reference[1])
    apart = float(torch.where(got_BNK == wanted_BNK, 0.0, got_BNK - wanted_BNK).abs().max())
    bound = 64 * torch.finfo(torch.float32).eps * float(s_BNS.nan_to_num(0.0, 0.0, 0.0).abs().max())
    if not apart <= bound:
        return Comparison(math.inf, 0.0, f"ranks of chosen rows are {apart:.3g} below the best")
    attended = {name: inputs[name] for name in ("q_BHD", "k_BGSD", "v_BGSD", "scale")} | {
        "index_BNK": index_BNK,
        "count_BN": count_BN,
    }
    return compare_values(inputs, out_BHD, GATHER_DECODE.reference(attended))


OP = Op("topk_decode", "6", __name__, topk_decode, make, moved_bytes, flops, CASES, compare)
