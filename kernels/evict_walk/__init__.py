"""The walk of an eviction over many rows: for each new one the key with the lowest mark leaves, if the cache is full.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim,
N = 1 or G sets of rows.
"""

import math

import torch

from ..many_rows import RowsCase, draw_first, draw_qkv
from ..op import Case, Comparison, Inputs, Op
from .eager import Walked, evict_walk, shares

TESTED = (
    RowsCase("mha_64", 1, 2, 2, 57, head_dim=64, kept=19, queries=24, dtype="float32"),
    RowsCase("gqa3_96", 1, 6, 2, 31, head_dim=96, kept=9, dtype="float16"),
    RowsCase("gqa4_offset", 2, 8, 2, 70, head_dim=64, kept=30, queries=25, dtype="bfloat16", layout="padded"),
    RowsCase("gqa2_padded", 2, 4, 2, 83, head_dim=64, kept=27, queries=40, dtype="bfloat16", layout="padded"),
    RowsCase("last_row", 2, 4, 2, 50, head_dim=64, kept=17, queries=24, dtype="bfloat16", reduce="sum"),
)
TIMED = (
    RowsCase("b1_h6_g3_s5120_k1024", 1, 6, 3, 5120, head_dim=64, kept=1024, queries=4096, visible="full",
             purpose="time"),
    RowsCase("b1_h6_g3_s5120_k1024_last", 1, 6, 3, 5120, head_dim=64, kept=1024, queries=4096, reduce="sum",
             visible="full", purpose="time"),
    RowsCase("b1_h32_g8_s12288_k4096", 1, 32, 8, 12288, kept=4096, queries=8192, visible="full", purpose="time"),
)  # fmt: skip
COMPILED = (
    *(
        RowsCase("gqa4", 1, 8, 2, 256, kept=64, queries=128, dtype=dtype, purpose="compile")
        for dtype in ("bfloat16", "float32")
    ),
    RowsCase("mha", 1, 2, 2, 256, head_dim=96, kept=64, queries=128, dtype="float32", purpose="compile"),
    RowsCase("gqa2", 1, 4, 2, 1280, head_dim=64, kept=1024, queries=256, purpose="compile"),
    *(
        RowsCase("last_of_32", 1, 32, 8, 1152, kept=1024, queries=128, reduce="sum", dtype=dtype, purpose="compile")
        for dtype in ("bfloat16", "float32")
    ),
    *(
        RowsCase("many", 1, 8, 2, 8320, kept=8192, queries=128, dtype=dtype, purpose="compile")
        for dtype in ("bfloat16", "float32")
    ),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case: K rows are held before the new ones, or fewer in the last set, and half are recent.

    Args:
        case: A `RowsCase`. Marks add up in a set for each KV head; where its `reduce` is "sum", one set for all heads
            is marked by the last row alone, and only the new row is recent.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `evict_walk`.
    """
    assert isinstance(case, RowsCase)
    generator = torch.Generator(device=device).manual_seed(seed)
    last = case.reduce == "sum"
    sets = 1 if last else case.kv_heads
    inputs = draw_qkv(case, device, seed)
    inputs.pop("v_BGSD")
    before = case.rows - case.new
    number_S = torch.arange(case.rows, device=device)
    rank_BNS = torch.rand(case.batch, sets, before, generator=generator, device=device)
    gone_BNS = rank_BNS.argsort(-1).argsort(-1) >= case.kept
    gone_BNS[:, -1] |= rank_BNS[:, -1] < 0.2
    number_BNS = number_S.expand(case.batch, sets, -1).clone()
    number_BNS[..., :before].masked_fill_(gone_BNS, -1)
    number_BNS.masked_fill_(number_S < draw_first(case, device)[:, None, None], -1)
    mark_BNS = torch.rand(case.batch, sets, case.rows, generator=generator, device=device)
    mark_BNS[..., before:] = 0.0
    budget_BT = torch.full((case.batch, case.new), case.kept, dtype=torch.int32, device=device)
    recent_BT = torch.ones_like(budget_BT) if last else budget_BT // 2
    keep = {"carry": 0.0, "share": 1.0 / case.q_heads} if last else {"carry": 1.0, "share": 1.0}
    keep["most"] = min(case.kept, case.rows)
    return inputs | {"mark_BNS": mark_BNS, "number_BNS": number_BNS.int(), "budget_BT": budget_BT,
                     "recent_BT": recent_BT, "scale": case.head_dim**-0.5} | keep  # fmt: skip


def compare_walks(inputs: Inputs, output: Walked, reference: Walked) -> Comparison:
    """Walk again in float64 as the output did: what left must each time have borne the lowest mark.

    Marks that differ by rounding may part two walks for good, so rows are not compared with those of the reference.

    Args:
        inputs: The arguments of the twins.
        output: Of a twin.
        reference: Of the eager twin, float64; not used, as another walk has other marks.

    Returns:
        By how much a lower mark was passed over, or a final mark is wrong, over the largest mark.
    """
    del reference
    until, (q, k) = output.until_BNS.long(), (inputs["q_BHTD"].double(), inputs["k_BGSD"].double())
    number, mark = inputs["number_BNS"].long(), inputs["mark_BNS"].double()
    sets, new, before = number.shape[1], q.shape[2], k.shape[2] - q.shape[2]
    held, worst = (number >= 0) & (torch.arange(k.shape[2], device=k.device) < before), 0.0
    if bool((until[number < 0] != 0).any()) or bool(((until < 0) | (until > new)).any()):
        return Comparison(math.inf, 0.0, "a key that no row sees has a lifetime, or one ends outside of the rows")
    for t in range(new):
        now = number[:, :, before + t, None]
        real = now >= 0
        budget, recent = (inputs[name][:, t, None, None].long() for name in ("budget_BT", "recent_BT"))
        old, leaves = held & (number <= now - recent), held & (until == t) & real
        full = real & (held.sum(-1, keepdim=True) + 1 > budget)
        if not torch.equal(leaves.sum(-1, keepdim=True), full.long()) or bool((leaves & ~old).any()):
            return Comparison(math.inf, 0.0, f"row {t}: not exactly one key that is not recent leaves a full cache")
        lowest = mark.masked_fill(~old, math.inf).amin(-1, keepdim=True)
        passed = torch.where(leaves, mark - lowest, 0.0).amax() / mark.clamp(max=1e6).amax().clamp_min(1e-12)
        held = held & ~leaves
        held[:, :, before + t] |= real[..., 0]
        added = inputs["share"] * shares(q[:, :, t : t + 1], k, held, inputs["scale"], sets)
        mark = torch.where(real, inputs["carry"] * mark + added, mark)
        worst = max(worst, float(passed))
    found, wanted = output.mark_BNS.double(), mark.masked_fill(~held, 0.0)
    apart = float((found - wanted).abs().amax() / wanted.amax().clamp_min(1e-12))
    if bool(found.isnan().any()) or bool(((until == new) != held).any()):
        return Comparison(math.inf, 0.0, "a mark is NaN, or a key held to the end has an end")
    return Comparison(max(worst, apart), 1.0)


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: queries and keys read once, lifetimes and marks written.

    Args:
        case: A `RowsCase`.

    Returns:
        Bytes.
    """
    assert isinstance(case, RowsCase)
    elements = (case.q_heads * case.new + case.kv_heads * case.rows) * case.head_dim
    return case.batch * (elements * case.item_bytes + 16 * case.kv_heads * case.rows)


def flops(case: Case) -> int:
    """Count the products of each row with the K keys that it holds.

    Args:
        case: A `RowsCase`.

    Returns:
        Floating-point operations.
    """
    assert isinstance(case, RowsCase)
    return 2 * case.batch * case.q_heads * case.new * case.kept * case.head_dim


OP = Op("evict_walk", "4", __name__, evict_walk, make, moved_bytes, flops, TESTED + TIMED + COMPILED, compare_walks)
