"""Causal linear attention over features of any map, by chunks, with the state after the last row.

Shape legend: B batch, H query heads, G KV heads, T rows, F features, D head dim.
"""

import math

import torch

from ..many_rows import RowsCase
from ..op import Case, Comparison, Inputs, Op
from ..visible import draw
from .eager import CHUNK, Linear, linear_prefill

TESTED = (
    RowsCase("mha_64", 2, 2, 2, 77, head_dim=64, low_dims=64, dtype="float32"),
    RowsCase("taylor_16", 1, 3, 1, 130, head_dim=96, low_dims=273, dtype="float16"),
    RowsCase("gqa4", 2, 4, 1, 45, head_dim=128, low_dims=40, dtype="bfloat16"),
)
TIMED = tuple(
    RowsCase(f"b1_h32_g8_s{rows}_f{features}", 1, 32, 8, rows, low_dims=features, visible="full", purpose="time")
    for rows in (8192, 32768) for features in (128, 273)
) + tuple(
    RowsCase(f"b1_h{heads}_g{groups}_d{dim}_s4096_f153_f32", 1, heads, groups, 4096, head_dim=dim, low_dims=153,
             dtype="float32", visible="full", purpose="time") for heads, groups, dim in ((32, 8, 128), (6, 3, 64))
)  # fmt: skip
COMPILED = (
    RowsCase("gqa4", 1, 8, 2, 256, low_dims=128, purpose="compile"),
    RowsCase("packed", 1, 8, 2, 256, low_dims=153, purpose="compile"),
    RowsCase("mha", 1, 2, 2, 256, head_dim=96, low_dims=273, dtype="float32", purpose="compile"),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw positive features, as maps of weights have them, values, factors, and a state of earlier rows.

    Args:
        case: A `RowsCase`; `low_dims` is F. Rows of float32 features begin at multiples of 64 bytes, as those of
            `taylor_features` do; others are packed. In ragged cases a quarter of the query rows lets no row enter, and
            the last sequence has no state, and no row before its sixth; some query rows have no exact row.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `linear_prefill`.
    """
    heads, keys = (case.batch, case.q_heads, case.rows), (case.batch, case.kv_heads, case.rows)
    state = (case.batch, case.kv_heads, case.low_dims, case.head_dim)
    generator = torch.Generator(device=device).manual_seed(seed)
    log_BGT = 4 * torch.randn(keys, generator=generator, device=device)
    scale_BG = 4 * torch.randn(keys[:2], generator=generator, device=device)
    if case.visible == "ragged":
        log_BGT[torch.rand(keys, generator=generator, device=device) < 0.25] = -torch.inf
        log_BGT[-1, :, :5], scale_BG[-1] = -torch.inf, -torch.inf
    exact_log = 3 * torch.randn(heads, generator=generator, device=device) + 5
    if case.visible == "ragged":
        exact_log[..., ::9] = -torch.inf
    return {
        "q_BHTF": features_of(heads, case, device, seed + 1),
        "q_log_BHT": torch.randn(heads, generator=generator, device=device),
        "k_BGTF": features_of(keys, case, device, seed + 2),
        "v_BGTD": draw((*keys, case.head_dim), case, device, seed + 3),
        "log_BGT": log_BGT,
        "state_BGFD": torch.randn(state, generator=generator, device=device),
        "norm_BGF": torch.rand(state[:3], generator=generator, device=device),
        "scale_BG": scale_BG,
        "exact_BHTD": torch.randn((*heads, case.head_dim), generator=generator, device=device),
        "exact_log_BHT": exact_log,
    }


def features_of(rows: tuple[int, ...], case: Case, device: torch.device, seed: int) -> torch.Tensor:
    """Draw positive features.

    Args:
        rows: All dims but the last.
        case: Whose `low_dims` is F.
        device: Where they live.
        seed: Of the draw.

    Returns:
        (*rows, F).
    """
    features = draw((*rows, case.low_dims), case, device, seed).abs()
    if case.torch_dtype != torch.float32:
        return features
    return torch.nn.functional.pad(features, (0, -case.low_dims % 16), value=torch.nan)[..., : case.low_dims]


def compare_linear(inputs: Inputs, output: Linear, reference: Linear) -> Comparison:  # noqa: ARG001
    """Compare means and states by the norm of each head's difference over that of its reference, factors as they are.

    Args:
        inputs: Not used.
        output: Of a twin.
        reference: Of the eager twin, float64.

    Returns:
        The comparison; its error is that of the worst head.
    """
    worst = 0.0
    for name, found, wanted in zip(Linear._fields, output, reference, strict=True):
        if found.shape != wanted.shape or bool(found.isnan().any()):
            return Comparison(math.inf, 0.0, f"{name}: another shape, or NaN")
        there = wanted > -torch.inf
        if not torch.equal(there, found > -torch.inf):
            return Comparison(math.inf, 0.0, f"{name}: nothing in other places than in the reference")
        apart = (found.double() - wanted).masked_fill(~there, 0.0)
        if name == "scale_BG":
            worst = max(worst, float(apart.abs().max()))
            continue
        length = wanted.flatten(2).norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
        worst = max(worst, float((apart.flatten(2).norm(dim=-1) / length).max()))
    return Comparison(worst, 1.0)


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: features, values, factors and exact means read, means written; no states of chunks.

    Args:
        case: A `RowsCase`.

    Returns:
        Bytes.
    """
    queries = case.q_heads * case.rows * (case.low_dims * case.item_bytes + 8 * case.head_dim + 8)
    keys = case.kv_heads * case.rows * ((case.low_dims + case.head_dim) * case.item_bytes + 4)
    return case.batch * (queries + keys + 8 * case.kv_heads * case.low_dims * (case.head_dim + 1))


def flops(case: Case) -> int:
    """Count the operations: states of chunks, and for each query the state and half of its chunk.

    Args:
        case: A `RowsCase`.

    Returns:
        Floating-point operations.
    """
    states = 2 * case.kv_heads * case.rows * case.low_dims * case.head_dim
    each = 2 * case.low_dims * case.head_dim + CHUNK * (case.low_dims + case.head_dim)
    return case.batch * (states + case.q_heads * case.rows * each)


OP = Op("linear_prefill", "4", __name__, linear_prefill, make, moved_bytes, flops, TESTED + TIMED + COMPILED,
        compare_linear)  # fmt: skip
