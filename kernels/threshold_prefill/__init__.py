"""Attention of many rows to exactly the keys above the threshold of each row, with what compensation needs.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim,
R dims of the ranks, N sets of rows.
"""

import math

import torch

from ..many_rows import RowsCase, draw_first, draw_qkv
from ..op import Case, Comparison, Inputs, Op, Reduce, compare_values
from ..visible import draw
from .eager import Kept, threshold_prefill

TESTED = (
    RowsCase("mha_64", 2, 2, 2, 77, head_dim=64, low_dims=64, kept=19, dtype="float32", reduce="none"),
    RowsCase("gqa3_lowrank", 1, 6, 2, 61, head_dim=96, low_dims=24, kept=33, dtype="float16", reduce="none"),
    RowsCase("gqa4_offset", 2, 8, 2, 90, head_dim=64, low_dims=64, kept=7, queries=33, dtype="bfloat16",
             layout="padded"),
    RowsCase("gqa2_lowrank", 1, 4, 2, 70, head_dim=128, low_dims=32, kept=12, dtype="bfloat16"),
)  # fmt: skip
RANKED: tuple[tuple[Reduce, int], ...] = (("max", 128), ("none", 128), ("max", 32))
TIMED = tuple(
    RowsCase(f"b1_h32_g8_s{rows}_{reduce}_r{dims}", 1, 32, 8, rows, low_dims=dims, kept=rows // 4, reduce=reduce,
             visible="full", purpose="time")
    for rows in (8192, 32768, 65536, 131072) for reduce, dims in RANKED[: 3 if rows <= 32768 else 1]
)  # fmt: skip
COMPILED = (
    RowsCase("shared", 1, 8, 2, 256, low_dims=128, kept=64, purpose="compile"),
    RowsCase("lowrank", 1, 8, 2, 256, low_dims=32, kept=64, purpose="compile"),
    RowsCase("apart", 1, 3, 1, 256, head_dim=64, low_dims=64, kept=64, reduce="none", dtype="float32",
             purpose="compile"),
)  # fmt: skip


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; thresholds keep about K of normal ranks, and nothing of some rows.

    Args:
        case: A `RowsCase`; with R = D the exact scores rank.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `threshold_prefill`.
    """
    assert isinstance(case, RowsCase)
    inputs = draw_qkv(case, device, seed)
    exact = case.low_dims == case.head_dim
    heads = (case.batch, case.q_heads, case.new)
    rank_q = inputs["q_BHTD"] if exact else draw((*heads, case.low_dims), case, device, seed + 4)
    rank_k = inputs["k_BGSD"] if exact else draw((*inputs["k_BGSD"].shape[:3], case.low_dims), case, device, seed + 5)
    place = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 2 * case.kept / case.rows)).item()
    spread = math.sqrt(case.low_dims / case.head_dim)
    generator = torch.Generator(device=device).manual_seed(seed)
    jitter_BNT = torch.randn((case.batch, case.sets, case.new), generator=generator, device=device)
    threshold_BNT = spread * (place + 0.1 * jitter_BNT)
    threshold_BNT[:, :, ::7] = math.inf
    shift = torch.randn(heads, generator=generator, device=device) if case.reduce == "none" else None
    more = {"shift_BHT": shift, "first_B": draw_first(case, device), "scale": case.head_dim**-0.5}
    return inputs | {"rank_q_BHTR": rank_q, "rank_k_BGSR": rank_k, "threshold_BNT": threshold_BNT} | more | {
        "reduce": case.reduce, "weigh": "ranks" if case.reduce == "max" and not exact else "scores"
    }  # fmt: skip


def compare_kept(inputs: Inputs, output: Kept, reference: Kept) -> Comparison:
    """Compare output and sums by the norm of each head's difference; the rows kept by their number.

    A rank that lies at the threshold to the last bit may fall on either side: one key in a million may.

    Args:
        inputs: Not used by the values.
        output: Of a twin.
        reference: Of the eager twin, float64.

    Returns:
        The comparison; its error is that of the worst head.
    """
    for name in ("count_BNT", "read_BGT"):
        found, wanted = getattr(output, name), getattr(reference, name)
        apart = int((found.long() - wanted.long()).abs().sum())
        if apart > 1e-6 * int(wanted.sum()):
            return Comparison(math.inf, 0.0, f"{name}: {apart} rows more or less of {int(wanted.sum())}")
    worst = compare_values(inputs, output.top_BHT, reference.top_BHT)
    if worst.reason:
        return worst
    errors = [worst.error / max(worst.scale, 1e-12)]
    for name in ("out_BHTD", "kept_BHT", "total_BHT"):
        found, wanted = getattr(output, name).double(), getattr(reference, name)
        if bool(found.isnan().any()):
            return Comparison(math.inf, 0.0, f"{name}: {int(found.isnan().sum())} elements are NaN")
        whole = wanted.flatten(2).norm(dim=-1).clamp_min(1e-12)
        errors.append(float(((found - wanted).flatten(2).norm(dim=-1) / whole).max()))
    return Comparison(max(errors), 1.0)


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: all tensors read once, the output and the sums of each row written.

    Args:
        case: A `RowsCase`.

    Returns:
        Bytes.
    """
    assert isinstance(case, RowsCase)
    low = 0 if case.low_dims == case.head_dim else case.low_dims
    queries = case.q_heads * case.new * (2 * case.head_dim + low) * case.item_bytes
    keys = case.kv_heads * case.rows * (2 * case.head_dim + low) * case.item_bytes
    return case.batch * (queries + keys + 4 * case.new * (3 * case.q_heads + 2 * case.sets + case.kv_heads))


def flops(case: Case) -> int:
    """Count the operations of dense attention and of the ranks; a tile is skipped only as a whole.

    Args:
        case: A `RowsCase`.

    Returns:
        Floating-point operations.
    """
    assert isinstance(case, RowsCase)
    low = 0 if case.low_dims == case.head_dim else case.low_dims
    return case.batch * case.q_heads * case.pairs * (4 * case.head_dim + 2 * low)


OP = Op("threshold_prefill", "2", __name__, threshold_prefill, make, moved_bytes, flops, TESTED + TIMED + COMPILED,
        compare_kept)  # fmt: skip
