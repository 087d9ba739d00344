"""Pooled votes of the last rows of a prompt for all rows: what SnapKV and PyramidKV rank rows by, and TOVA's weights.

Shape legend: B batch, H query heads, G KV heads, W rows of the window (the last W of the S key rows), S key rows,
D head dim.
"""

from dataclasses import dataclass

import torch

from ..many_rows import RowsCase, draw_first, draw_qkv
from ..op import Case, Inputs, Op
from .eager import Group, Pooling, window_votes


@dataclass(frozen=True)
class VotesCase(RowsCase):
    """A case whose queries are the window.

    Attributes:
        group: How heads are joined.
        kernel: Width of the pooling.
        pooling: Its kind.
    """

    group: Group = "mean"
    kernel: int = 7
    pooling: Pooling = "max"


TESTED = (
    VotesCase("snapkv", 2, 4, 2, 77, head_dim=64, queries=9, dtype="float32", layout="padded"),
    VotesCase("gqa3_96", 1, 3, 1, 140, head_dim=96, queries=40, group="sum", pooling="avg", dtype="float16"),
    VotesCase("max", 2, 8, 1, 60, head_dim=64, queries=8, kernel=5, group="max", dtype="bfloat16"),
    VotesCase("last_row", 1, 4, 2, 33, head_dim=64, queries=1, kernel=1, dtype="bfloat16", kept=-1),
)
TIMED = tuple(
    VotesCase(f"b1_h32_g8_s{rows}_w{window}", 1, 32, 8, rows, queries=window, visible="full", purpose="time")
    for rows in (8192, 32768, 131072) for window in (32, 1)
)  # fmt: skip
COMPILED = (
    VotesCase("gqa4", 1, 8, 2, 256, queries=32, purpose="compile"),
    VotesCase(
        "last", 1, 2, 2, 256, queries=1, kernel=1, pooling="avg", group="max", dtype="float32", purpose="compile"
    ),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case.

    Args:
        case: A `VotesCase`; with `kept` at -1 all rows of the window vote and get votes.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `window_votes`.
    """
    assert isinstance(case, VotesCase)
    inputs = draw_qkv(case, device, seed)
    inputs.pop("v_BGSD")
    width = 0 if case.kept < 0 else case.new
    width_B = torch.full((case.batch,), width, dtype=torch.int32, device=device)
    if case.visible == "ragged":
        width_B = (width_B - torch.arange(case.batch, dtype=torch.int32, device=device)).clamp(min=0)
    more = {"first_B": draw_first(case, device), "width_B": width_B, "scale": case.head_dim**-0.5}
    return {"q_BHWD": inputs["q_BHTD"], "k_BGSD": inputs["k_BGSD"]} | more | {
        "group": case.group, "kernel": case.kernel, "pooling": case.pooling
    }  # fmt: skip


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: keys read in both passes, queries once, votes written, read and written pooled.

    Args:
        case: A `VotesCase`.

    Returns:
        Bytes.
    """
    assert isinstance(case, VotesCase)
    elements = (case.q_heads * case.new + 2 * case.kv_heads * case.rows) * case.head_dim
    return case.batch * (elements * case.item_bytes + 12 * case.kv_heads * case.rows)


def flops(case: Case) -> int:
    """Count the operations of the two passes.

    Args:
        case: A `VotesCase`.

    Returns:
        Floating-point operations.
    """
    assert isinstance(case, VotesCase)
    return 4 * case.batch * case.q_heads * case.pairs * case.head_dim


OP = Op("window_votes", "1", __name__, window_votes, make, moved_bytes, flops, TESTED + TIMED + COMPILED)
