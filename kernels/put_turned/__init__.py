"""A few rows turned by rotary angles (RoPE, halves) and written over rows of a cache.

Shape legend: B batch, G KV heads, E rows, S rows in the cache, D head dim, R turned dims.
"""

from dataclasses import replace

import torch

from ..op import Case, Inputs, Op
from ..shapes import TIMED
from ..visible import draw
from .eager import put_turned

# A case whose `kept` is E and whose `low_dims` is R. The length of a cache costs nothing here, but memory.
ROWS, SINKS = 1024, 4
TESTED = (
    Case("sinks_64", 2, 2, 2, 37, head_dim=64, low_dims=64, kept=4, dtype="float32"),
    Case("one_96", 3, 3, 1, 11, head_dim=96, low_dims=96, kept=1, dtype="float16"),
    Case("part_80", 2, 4, 2, 21, head_dim=80, low_dims=20, kept=7, dtype="bfloat16"),
    Case("many_128", 1, 8, 1, 61, low_dims=128, kept=45, dtype="bfloat16"),
    Case("part_128", 2, 2, 1, 9, low_dims=64, kept=9, dtype="float32", visible="full"),
)
SHORT = tuple(
    replace(case, name=case.name.partition("_s")[0] + f"_s{ROWS}", rows=ROWS, kept=SINKS, low_dims=128)
    for case in TIMED[:4]
)
COMPILED = (
    Case("sinks", 4, 32, 8, 1024, low_dims=128, kept=4, purpose="compile"),
    Case("many", 1, 2, 2, 1000, head_dim=96, low_dims=24, kept=40, purpose="compile"),
    Case("wide", 1, 2, 2, 1000, head_dim=96, low_dims=24, kept=5, dtype="float32", purpose="compile"),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw rows, their angles and where they go; in ragged cases some go nowhere, of the last text none goes anywhere.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `put_turned`.
    """
    generator = torch.Generator().manual_seed(seed)
    angle_BER = 6.3 * torch.rand(case.batch, case.kept, case.low_dims // 2, generator=generator).repeat(1, 1, 2)
    place_BE = torch.rand(case.batch, case.rows, generator=generator).argsort(-1)[:, : case.kept]
    if case.visible == "ragged":
        place_BE = place_BE.masked_fill(torch.rand(place_BE.shape, generator=generator) < 0.3, -1)
        place_BE[-1 if case.batch > 1 else case.batch :] = -1
    return {
        "x_BGED": draw((case.batch, case.kv_heads, case.kept, case.head_dim), case, device, seed + 1),
        "cos_BER": angle_BER.cos().to(device),
        "sin_BER": angle_BER.sin().to(device),
        "place_BE": place_BE.to(device),
        "cache_BGSD": draw((case.batch, case.kv_heads, case.rows, case.head_dim), case, device, seed + 2),
    }


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: rows read and written, one half of their angles and their places read.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    rows = 2 * case.kv_heads * case.head_dim * case.item_bytes
    return case.batch * case.kept * (rows + 4 * case.low_dims + 8)


def flops(case: Case) -> int:
    """Count two products and a sum for each turned element.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    return 3 * case.batch * case.kv_heads * case.kept * case.low_dims


OP = Op("put_turned", "1", __name__, put_turned, make, moved_bytes, flops, TESTED + SHORT + COMPILED,
        writes=("cache_BGSD",))  # fmt: skip
