"""Attention of many rows to the pages of keys that were chosen for each row, one bit a page.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim,
N = G or H sets of pages, P pages, W = P / 32 words.
"""

import torch

from ..many_rows import RowsCase, draw_first, draw_qkv
from ..op import Case, Inputs, Op, compare_all
from .eager import as_words, chosen_prefill

TESTED = (
    RowsCase("rows", 2, 2, 2, 77, head_dim=64, kept=19, block=1, dtype="float32", reduce="none"),
    RowsCase("pages_5", 1, 6, 2, 161, head_dim=96, kept=33, queries=60, block=5, dtype="float16"),
    RowsCase("gqa4_offset", 2, 8, 2, 90, head_dim=64, kept=30, queries=33, block=1, dtype="bfloat16", layout="padded"),
    RowsCase("pages_16", 1, 4, 2, 150, head_dim=64, kept=48, queries=70, block=16, dtype="bfloat16", reduce="none"),
)
TIMED = tuple(
    RowsCase(f"b1_h32_g8_s{rows}_page{page}", 1, 32, 8, rows, kept=rows // 4, block=page, visible="full",
             queries=queries, purpose="time")
    for rows, queries in ((8192, 0), (32768, 0), (131072, 16384)) for page in (1, 16)
)  # fmt: skip
COMPILED = (
    RowsCase("gqa4", 1, 8, 2, 256, kept=64, block=16, purpose="compile"),
    RowsCase("apart", 1, 3, 1, 256, head_dim=96, kept=64, block=1, reduce="none", dtype="float32", purpose="compile"),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; every seventh row chooses nothing, pages that a row does not see are drawn too.

    Args:
        case: A `RowsCase`; `block` is the rows of a page, of which about K rows are chosen.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `chosen_prefill`.
    """
    assert isinstance(case, RowsCase)
    generator = torch.Generator(device=device).manual_seed(seed)
    words, pages = [], -(-case.rows // case.block)
    for _ in range(case.batch * case.sets):
        parts = [
            as_words(torch.rand(min(1024, case.new - at), pages, generator=generator, device=device)
                     < case.kept / case.rows)
            for at in range(0, case.new, 1024)
        ]  # fmt: skip
        words.append(torch.cat(parts))
    bits_BNTW = torch.stack(words).unflatten(0, (case.batch, case.sets))
    bits_BNTW[:, :, ::7] = 0
    first = {"first_B": draw_first(case, device), "page": case.block}
    return draw_qkv(case, device, seed) | {"bits_BNTW": bits_BNTW} | first | {"scale": case.head_dim**-0.5}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: all tensors read once, output and sums of weights written.

    Args:
        case: A `RowsCase`.

    Returns:
        Bytes.
    """
    assert isinstance(case, RowsCase)
    elements = (2 * case.q_heads * case.new + 2 * case.kv_heads * case.rows) * case.head_dim
    bits = case.sets * case.new * -(-case.rows // (32 * case.block)) * 4
    return case.batch * (elements * case.item_bytes + 4 * case.q_heads * case.new + bits)


def flops(case: Case) -> int:
    """Count the operations of dense attention: a tile is skipped only as a whole.

    Args:
        case: A `RowsCase`.

    Returns:
        Floating-point operations.
    """
    assert isinstance(case, RowsCase)
    return 4 * case.batch * case.q_heads * case.pairs * case.head_dim


OP = Op("chosen_prefill", "1", __name__, chosen_prefill, make, moved_bytes, flops, TESTED + TIMED + COMPILED,
        compare_all)  # fmt: skip
