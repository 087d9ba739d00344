"""The box around the keys of the page being written, grown in place by the row that was written last.

Shape legend: B batch, G KV heads, S rows in the cache, D head dim, P pages, W = 2 D sides of a box.
"""

import torch

from ..op import Case, Inputs, Op
from ..shapes import CASES
from ..visible import draw
from .eager import grow_box


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw keys and boxes; the row of the first text begins a page, those of others lie anywhere.

    Args:
        case: Its shape; pages of 16 rows, or of 4 in a ragged case.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `grow_box`.
    """
    page = 16 if case.visible == "full" else 4
    generator = torch.Generator().manual_seed(seed)
    row_B = torch.randint(case.rows // 2, case.rows, (case.batch,), generator=generator)
    first_B = torch.randint(0, case.rows // 4 + 1, (case.batch,), generator=generator).minimum(row_B)
    first_B[0] = row_B[0] % page
    rows = (case.batch, case.kv_heads)
    return {
        "keys_BGSD": draw((*rows, case.rows, case.head_dim), case, device, seed),
        "row_B": row_B.to(device),
        "first_B": first_B.to(device),
        "boxes_BGPW": draw((*rows, -(-case.rows // page), 2 * case.head_dim), case, device, seed + 1),
        "page": page,
    }


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: a key and a box read, the box written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    return 5 * case.batch * case.kv_heads * case.head_dim * case.item_bytes


def flops(case: Case) -> int:
    """Count a comparison for each side of a box.

    Args:
        case: Its shape.

    Returns:
        Operations.
    """
    return 2 * case.batch * case.kv_heads * case.head_dim


OP = Op("grow_box", "1", __name__, grow_box, make, moved_bytes, flops, CASES, writes=("boxes_BGPW",))
