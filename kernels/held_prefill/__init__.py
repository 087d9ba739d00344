"""Attention of many rows to keys that leave one after the other, as an evicting method's walk has it.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim.
"""

import torch

from ..many_rows import RowsCase, draw_qkv
from ..op import Case, Inputs, Op, compare_all
from .eager import held_prefill

TESTED = (
    RowsCase("mha_64", 2, 2, 2, 77, head_dim=64, dtype="float32", kept=20),
    RowsCase("gqa3_96", 1, 3, 1, 140, head_dim=96, dtype="float16", kept=140),
    RowsCase("gqa4_offset", 2, 8, 2, 90, head_dim=64, queries=33, dtype="bfloat16", kept=12),
)
TIMED = tuple(
    RowsCase(f"b1_h32_g8_t4096_s{4096 + kept}", 1, 32, 8, 4096 + kept, queries=4096, kept=kept, visible="full",
             purpose="time") for kept in (1024, 8192)
)  # fmt: skip
COMPILED = (
    RowsCase("gqa4", 1, 8, 2, 256, kept=64, purpose="compile"),
    RowsCase("mha", 1, 2, 2, 256, head_dim=96, kept=64, dtype="float32", purpose="compile"),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw inputs, and let a row leave with each query row once K are held, at random as heavy hitters would have it.

    Args:
        case: A `RowsCase`; of ragged cases the first three rows are holes, and the last sequence holds none at first.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `held_prefill`.
    """
    assert isinstance(case, RowsCase)
    shape = (case.batch, case.kv_heads, case.rows)
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand(shape, generator=generator)
    rank[..., case.rows - case.new :] += torch.arange(case.new) / case.new
    # The rows ranked lowest leave first; none before it came.
    leave = rank.argsort(-1).argsort(-1) + case.kept - (case.rows - case.new)
    came = torch.arange(case.rows) - (case.rows - case.new) + 1
    leave = leave.clamp(min=0).maximum(came.clamp(min=1)).clamp(max=case.new)
    if case.visible == "ragged":
        leave[..., :3] = 0
        leave[-1, :, : case.rows - case.new] = 0
    inputs = draw_qkv(case, device, seed)
    return inputs | {"leave_BGS": leave.int().to(device), "scale": case.head_dim**-0.5}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: queries, keys and values read once, means and logs written.

    Args:
        case: A `RowsCase`.

    Returns:
        Bytes.
    """
    assert isinstance(case, RowsCase)
    queries = case.q_heads * case.new * (2 * case.head_dim * case.item_bytes + 4)
    return case.batch * (queries + case.kv_heads * case.rows * (2 * case.head_dim * case.item_bytes + 4))


def flops(case: Case) -> int:
    """Count the operations on the pairs that causality leaves; keys that have left are multiplied, too.

    Args:
        case: A `RowsCase`.

    Returns:
        Floating-point operations.
    """
    assert isinstance(case, RowsCase)
    return 4 * case.batch * case.q_heads * case.pairs * case.head_dim


OP = Op("held_prefill", "2", __name__, held_prefill, make, moved_bytes, flops, TESTED + TIMED + COMPILED, compare_all)
