"""Attention to the blocks that landmarks retrieved, chosen by token and head, by head, or by token.

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, N closed blocks, C regular rows of a block,
K blocks retrieved, D head dim, X = H or 1, Y = T or 1.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from ..many_rows import RowsCase
from ..op import Case, Inputs, Op, compare_all
from ..visible import draw
from .eager import landmark_retrieve

By = Literal["token_and_head", "head", "token"]


@dataclass(frozen=True)
class RetrieveCase(RowsCase):
    """A case whose `rows` are those of all closed blocks, landmarks left out, and whose `kept` is K.

    Attributes:
        by: For what blocks are chosen apart.
        gone: Blocks that are held no more: each sequence begins before its first row.
    """

    by: By = "token_and_head"
    gone: int = 0


TESTED = (
    RetrieveCase("token_and_head", 2, 4, 2, 60, head_dim=64, queries=5, block=10, kept=3, dtype="float32"),
    RetrieveCase("head", 1, 3, 1, 153, head_dim=96, queries=70, block=51, kept=2, by="head", dtype="float16"),
    RetrieveCase("token", 2, 8, 2, 64, head_dim=64, queries=9, block=16, kept=4, by="token", dtype="bfloat16"),
    RetrieveCase("gone", 2, 4, 2, 84, head_dim=128, queries=7, block=12, kept=3, gone=2, dtype="bfloat16"),
    RetrieveCase("block_1", 1, 2, 2, 9, head_dim=64, queries=3, block=1, kept=4, dtype="float32"),
)
TIMED = (
    *(RetrieveCase(f"b1_h32_g8_s32768_k4_{by}", 1, 32, 8, 32768, queries=256, block=64, kept=4, by=by, visible="full",
                   purpose="time") for by in ("token_and_head", "head", "token")),
    RetrieveCase("b1_h6_g3_s32750_k4_d64", 1, 6, 3, 32750, head_dim=64, queries=4096, block=50, kept=4, visible="full",
                 purpose="time"),
)  # fmt: skip
COMPILED = (
    RetrieveCase("one", 1, 8, 2, 256, queries=8, block=64, kept=2, purpose="compile"),
    RetrieveCase("small", 1, 6, 3, 250, head_dim=64, queries=8, block=50, kept=2, purpose="compile"),
    RetrieveCase("shared", 1, 8, 2, 256, queries=64, block=64, kept=2, by="head", purpose="compile"),
    RetrieveCase("group", 1, 8, 2, 256, queries=8, block=64, kept=2, by="token", purpose="compile"),
    RetrieveCase("head", 1, 2, 2, 256, queries=64, block=32, kept=2, by="head", dtype="float32", purpose="compile"),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw queries, blocks, and different blocks for each set; in ragged cases some slots hold none.

    Args:
        case: A `RetrieveCase`.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `landmark_retrieve`; in ragged cases each sequence begins at another row.
    """
    assert isinstance(case, RetrieveCase)
    count, ragged = case.rows // case.block, case.visible == "ragged"
    heads, rows = (1 if case.by == "token" else case.q_heads), (1 if case.by == "head" else case.new)
    generator = torch.Generator(device=device).manual_seed(seed)
    order = torch.rand((case.batch, heads, rows, count - case.gone), generator=generator, device=device)
    index = order.topk(min(case.kept, order.shape[-1]), -1).indices.sort(-1).values.int() + case.gone
    begin_B = torch.zeros(case.batch, dtype=torch.int32, device=device) - case.gone * case.block
    if ragged:
        index[:, :, ::3, 0] = -1
        index[:, 0, 0] = -1
        begin_B += 3 * torch.arange(case.batch, dtype=torch.int32, device=device)
    held = (case.batch, case.kv_heads, case.rows + (3 * case.batch if ragged else 0) - case.gone * case.block)
    return {
        "q_BHTKD": draw((case.batch, case.q_heads, case.new, index.shape[3], case.head_dim), case, device, seed + 1),
        "k_BGSD": draw((*held, case.head_dim), case, device, seed + 2),
        "v_BGSD": draw((*held, case.head_dim), case, device, seed + 3),
        "mark_BGND": draw((case.batch, case.kv_heads, count, case.head_dim), case, device, seed + 4),
        "index_BXYK": index,
        "begin_B": begin_B,
        "block": case.block,
        "scale": case.head_dim**-0.5,
    }


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: queries of all slots read, blocks once for each set that chooses, the output written.

    Args:
        case: A `RetrieveCase`; blocks that several sets choose may be read from a cache.

    Returns:
        Bytes.
    """
    assert isinstance(case, RetrieveCase)
    sets = {"token_and_head": case.q_heads * case.new, "head": case.q_heads, "token": case.kv_heads * case.new}[case.by]
    queries = case.q_heads * case.new * (case.kept + 1) * case.head_dim
    blocks = sets * case.kept * (2 * case.block + 1) * case.head_dim
    return case.batch * ((queries + blocks) * case.item_bytes + 4 * case.q_heads * case.new)


def flops(case: Case) -> int:
    """Count the operations of the two products, and of those with the landmarks.

    Args:
        case: A `RetrieveCase`.

    Returns:
        Floating-point operations.
    """
    assert isinstance(case, RetrieveCase)
    return 2 * case.batch * case.q_heads * case.new * case.kept * (2 * case.block + 1) * case.head_dim


OP = Op("landmark_retrieve", "2", __name__, landmark_retrieve, make, moved_bytes, flops, TESTED + TIMED + COMPILED,
        compare_all)  # fmt: skip
