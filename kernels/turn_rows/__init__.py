"""Rows turned by rotary angles out of a table (RoPE, halves), each row by one angle or by several.

Shape legend: B batch, H heads, T rows, K turns of each row, D head dim, P angles, R turned dims, X = H or 1.
"""

from dataclasses import dataclass

import torch

from ..many_rows import RowsCase
from ..op import Case, Inputs, Op
from ..visible import draw
from .eager import turn_rows


@dataclass(frozen=True)
class TurnCase(RowsCase):
    """A case whose `kept` is K and whose `low_dims` is R; `layout` "packed": rows of a head do not follow each other.

    Attributes:
        angles: P; 0: each row has an angle of its own, and no index says which.
        shared: Whether all heads turn alike.
    """

    angles: int = 0
    shared: bool = True


TESTED = (
    TurnCase("own", 2, 3, 1, 37, head_dim=64, low_dims=64, dtype="bfloat16"),
    TurnCase("table", 2, 2, 1, 21, head_dim=32, low_dims=32, kept=3, angles=50, dtype="float16"),
    TurnCase("heads", 1, 4, 1, 19, head_dim=96, low_dims=96, kept=4, angles=9, shared=False, layout="packed",
             dtype="bfloat16"),
    TurnCase("partial", 1, 3, 1, 33, head_dim=80, low_dims=20, kept=2, angles=5, dtype="float32"),
)  # fmt: skip
TIMED = (
    TurnCase("b1_h6_t4178_k4_d64", 1, 6, 3, 4178, head_dim=64, low_dims=64, kept=4, angles=1024, shared=False,
             purpose="time"),
    TurnCase("b1_h32_t4096_d128", 1, 32, 8, 4096, low_dims=128, purpose="time"),
)  # fmt: skip
COMPILED = (
    TurnCase("bfloat16", 1, 8, 2, 256, low_dims=128, kept=2, angles=64, purpose="compile"),
    TurnCase("float32", 1, 2, 2, 256, head_dim=96, low_dims=24, dtype="float32", purpose="compile"),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw rows, angles, and which of them turn which row.

    Args:
        case: A `TurnCase`.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `turn_rows`.
    """
    assert isinstance(case, TurnCase)
    count = case.angles or case.batch * case.new
    generator = torch.Generator(device=device).manual_seed(seed)
    angle_PR = (6.3 * torch.rand(count, case.low_dims // 2, generator=generator, device=device)).repeat(1, 2)
    row_BXTK = None
    if case.angles:
        shape = (case.batch, 1 if case.shared else case.q_heads, case.new, max(1, case.kept))
        row_BXTK = torch.randint(0, count, shape, generator=generator, device=device, dtype=torch.int32)
    x_BHTD = draw((case.batch, case.q_heads, case.new, case.head_dim), case, device, seed + 1)
    if case.layout == "packed":  # as a projection gives them
        x_BHTD = x_BHTD.transpose(1, 2).contiguous().transpose(1, 2)
    return {"x_BHTD": x_BHTD, "cos_PR": angle_PR.cos(), "sin_PR": angle_PR.sin(), "row_BXTK": row_BXTK}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: rows read once, turned rows written, the index and one half of the table read.

    Args:
        case: A `TurnCase`.

    Returns:
        Bytes.
    """
    assert isinstance(case, TurnCase)
    turns, rows = max(1, case.kept), case.batch * case.q_heads * case.new
    index = 4 * case.batch * (1 if case.shared else case.q_heads) * case.new * turns if case.angles else 0
    table = 4 * (case.angles or case.batch * case.new) * case.low_dims
    return rows * (1 + turns) * case.head_dim * case.item_bytes + index + table


def flops(case: Case) -> int:
    """Count two products and a sum for each turned element.

    Args:
        case: A `TurnCase`.

    Returns:
        Floating-point operations.
    """
    assert isinstance(case, TurnCase)
    return 3 * case.batch * case.q_heads * case.new * max(1, case.kept) * case.low_dims


OP = Op("turn_rows", "1", __name__, turn_rows, make, moved_bytes, flops, TESTED + TIMED + COMPILED)
