"""SparQ's choice for many query rows: the keys with the largest approximate weights, as bits.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim,
W words of 32 keys.
"""

import math

import torch

from ..chosen_prefill.eager import of_words
from ..many_rows import RowsCase, draw_first, draw_qkv
from ..op import Case, Comparison, Inputs, Op
from .eager import Rows, approximate, sparq_rows

TESTED = (
    RowsCase("mha_64", 1, 2, 2, 77, head_dim=64, kept=19, queries=9, dtype="float32"),
    RowsCase("gqa3_96", 1, 6, 2, 61, head_dim=96, kept=33, queries=7, dtype="float16"),
    RowsCase("gqa4_offset", 2, 8, 2, 90, head_dim=64, kept=30, queries=6, dtype="bfloat16", layout="padded"),
)
TIMED = tuple(
    RowsCase(f"b1_h{heads}_g{groups}_s{rows}", 1, heads, groups, rows, head_dim=dim, kept=rows // 4, queries=queries,
             visible="full", purpose="time")
    for heads, groups, dim, rows, queries in (
        (6, 3, 64, 32768, 4096), (32, 8, 128, 8192, 0), (32, 8, 128, 32768, 0), (32, 8, 128, 65536, 4096),
        (32, 8, 128, 131072, 4096),
    )
)  # fmt: skip
COMPILED = (
    RowsCase("gqa4", 1, 8, 2, 256, kept=64, purpose="compile"),
    RowsCase("long", 1, 4, 2, 32768, head_dim=64, queries=16, kept=64, purpose="compile"),
    RowsCase("mha", 1, 2, 2, 256, head_dim=96, kept=64, dtype="float32", purpose="compile"),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; three of four components of the queries are zero, factors differ by head and row.

    Args:
        case: A `RowsCase`.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `sparq_rows`.
    """
    assert isinstance(case, RowsCase)
    generator = torch.Generator(device=device).manual_seed(seed)
    inputs = draw_qkv(case, device, seed)
    lead = (case.batch, case.kv_heads, case.new, case.head_dim)
    zero_BGTD = torch.rand(lead, generator=generator, device=device) > 0.25
    q_BHTD = inputs["q_BHTD"].masked_fill(zero_BGTD.repeat_interleave(case.q_heads // case.kv_heads, 1), 0.0)
    factor_BHT = torch.rand(q_BHTD.shape[:3], generator=generator, device=device) + 0.5
    first_B, row_T = draw_first(case, device), torch.arange(case.rows - case.new, case.rows, device=device)
    context_BT = (row_T + 1 - first_B[:, None]).clamp(min=0)
    budget_BT = context_BT.clamp(max=case.kept)
    return {"q_BHTD": q_BHTD, "k_BGSD": inputs["k_BGSD"], "factor_BHT": factor_BHT * case.head_dim**-0.5 * 2,
            "budget_BT": budget_BT.int(), "local_BT": (budget_BT // 4).int(), "first_B": first_B}  # fmt: skip


def compare_choices(inputs: Inputs, output: Rows, reference: Rows) -> Comparison:
    """Hold the ranks of the keys chosen against those of the best, and the weights inside against their own sums.

    Args:
        inputs: The arguments of the twins.
        output: Of a twin.
        reference: Of the eager twin, float64; not used: keys of nearly equal rank may be chosen for each other.

    Returns:
        The largest difference of summed ranks of a row, or of weights inside.
    """
    del reference
    q, k = inputs["q_BHTD"].double(), inputs["k_BGSD"].double()
    at_BS = torch.arange(k.shape[2], device=k.device) - inputs["first_B"][:, None]
    keep = of_words(output.bits_BGTW, at_BS.clamp(min=0)[:, None, None].expand(*output.bits_BGTW.shape[:3], -1))
    keep = keep & (at_BS >= 0)[:, None, None]
    rank, weights = approximate(q, k, inputs["factor_BHT"].double(), inputs["local_BT"], inputs["first_B"], 0)
    if bool((keep & (rank == -math.inf)).any()) or bool((~keep & (rank == math.inf)).any()):
        return Comparison(math.inf, 0.0, "a key that a row does not see is chosen, or a local one is not")
    if not torch.equal(keep.sum(-1), inputs["budget_BT"][:, None].expand_as(keep[..., 0]).long()):
        return Comparison(math.inf, 0.0, "not as many keys as the budget says")
    value = rank.masked_fill(rank.isinf(), 0.0)
    local = (rank == math.inf).sum(-1)
    ranked = rank.masked_fill(rank == math.inf, -math.inf).sort(-1, descending=True).values
    taken = torch.arange(k.shape[2], device=k.device) < (keep.sum(-1) - local)[..., None]
    lost = (ranked.masked_fill(~taken, 0.0).sum(-1) - (value * keep).sum(-1)).abs().amax()
    inside = (weights * keep.repeat_interleave(q.shape[1] // k.shape[1], 1)).sum(-1)
    if bool(output.inside_BHT.isnan().any()):
        return Comparison(math.inf, 0.0, "a weight is NaN")
    return Comparison(max(float(lost), float((output.inside_BHT.double() - inside).abs().amax())), 1.0)


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: queries and keys read once, bits and weights written.

    Args:
        case: A `RowsCase`.

    Returns:
        Bytes.
    """
    assert isinstance(case, RowsCase)
    elements = (case.q_heads * case.new + case.kv_heads * case.rows) * case.head_dim
    bits = case.kv_heads * case.new * -(-case.rows // 32) * 4
    return case.batch * (elements * case.item_bytes + bits + 8 * case.q_heads * case.new)


def flops(case: Case) -> int:
    """Count the operations of one product of all visible pairs.

    Args:
        case: A `RowsCase`.

    Returns:
        Floating-point operations.
    """
    assert isinstance(case, RowsCase)
    return 2 * case.batch * case.q_heads * case.pairs * case.head_dim


OP = Op("sparq_rows", "3", __name__, sparq_rows, make, moved_bytes, flops, TESTED + TIMED + COMPILED, compare_choices)
