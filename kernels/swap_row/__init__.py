"""A new row put in the place of the one with the lowest mark, in a full cache whose rows do not move.

Shape legend: B batch, G KV heads, S rows in the cache, D head dim.
"""

import torch

from ..op import Case, Comparison, Inputs, Op, compare_all
from ..shapes import CASES
from ..visible import draw
from .eager import Swapped, swap_row

COMPILED = (
    Case("gqa", 4, 32, 8, 4096, kept=1024, visible="full", purpose="compile"),
    Case("shared", 1, 1, 1, 16384, visible="full", purpose="compile"),
    Case("mha", 1, 2, 2, 1000, head_dim=96, dtype="float32", visible="full", purpose="compile"),
    Case("shared_96", 1, 1, 1, 16384, head_dim=96, dtype="float32", visible="full", purpose="compile"),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw a full cache in no order; marks repeat, and in ragged cases each head begins with holes.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `swap_row`.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (case.batch, case.kv_heads, case.rows)
    numbers = torch.rand(shape, generator=generator).argsort(-1)
    marks = torch.randint(0, 5, shape, generator=generator).float()
    if case.visible == "ragged":
        holes = torch.randint(0, case.rows // 3 + 1, shape[:2], generator=generator)[..., None]
        numbers = numbers.masked_fill(torch.arange(case.rows) < holes, -1)
    recent_B = torch.randint(1, case.rows // 2 + 2, (case.batch,), generator=generator)
    names = {"k_BGD": shape[:2], "v_BGD": shape[:2], "keys_BGSD": shape, "values_BGSD": shape}
    rows = {name: draw((*size, case.head_dim), case, device, seed + i) for i, (name, size) in enumerate(names.items())}
    number_1 = torch.tensor([case.rows], device=device)
    return {
        **{name: rows[name] for name in ("k_BGD", "v_BGD")},
        "number_1": number_1,
        "recent_B": recent_B.to(device),
        **{name: rows[name] for name in ("keys_BGSD", "values_BGSD")},
        "marks_BGS": marks.to(device),
        "numbers_BGS": numbers.to(device),
        **({"age": "settled"} if case.purpose == "time" else {}),
    }


def compare_swapped(inputs: Inputs, output: Swapped, reference: Swapped) -> Comparison:
    """Compare all that left and all that was written; nothing is rounded.

    Args:
        inputs: Not used.
        output: Of a twin.
        reference: Of the eager twin.

    Returns:
        The comparison.
    """
    found, wanted = (tuple(part.double() for part in swapped) for swapped in (output, reference))
    return compare_all(inputs, found, wanted)


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: marks and numbers read, two rows read and two written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    return case.batch * case.kv_heads * (12 * case.rows + 8 * case.head_dim * case.item_bytes)


def flops(case: Case) -> int:
    """Count nothing: marks are compared.

    Args:
        case: Its shape.

    Returns:
        Zero.
    """
    del case
    return 0


OP = Op("swap_row", "3", __name__, swap_row, make, moved_bytes, flops, (*CASES, *COMPILED), compare_swapped,
        ("keys_BGSD", "values_BGSD", "marks_BGS", "numbers_BGS"))  # fmt: skip
