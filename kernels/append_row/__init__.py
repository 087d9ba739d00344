"""One token's queries and keys turned and projected, and its rows written into preallocated caches.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R leading columns,
W columns kept once more, C columns of sums: D or none.
"""

from dataclasses import replace

import torch

from ..op import Case, Inputs, Op, compare_all
from ..rotate_rows import make as make_turn
from ..shapes import TESTED, TIMED
from ..visible import draw
from .eager import append_row

# The length of a cache costs nothing here, but memory.
ROWS = 1024
SHORT = tuple(replace(case, name=case.name.partition("_s")[0] + f"_s{ROWS}", rows=ROWS, kept=0) for case in TIMED[:4])


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; where its scores are summed nothing is projected, where all is visible no values are.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `append_row`.
    """
    turn = make_turn(case, device, seed)
    dim, low = case.head_dim, 0 if case.reduce == "sum" else case.low_dims
    generator = torch.Generator().manual_seed(seed + 4)
    basis = torch.linalg.qr(torch.randn(case.kv_heads, dim, dim, generator=generator)).Q.to(device, case.torch_dtype)
    lead, rest = (part.contiguous() for part in (basis if low else basis[..., :0]).tensor_split([low], -1))
    place_B = torch.randint(0, case.rows, (case.batch,), generator=generator).to(device)
    sizes = {"keys_BGSD": dim, "values_BGSD": dim, "leads_BGSW": low}
    caches = {
        name: draw((case.batch, case.kv_heads, case.rows, size), case, device, seed + 5 + number)
        for number, (name, size) in enumerate(sizes.items())
    }
    v_BGD = draw((case.batch, case.kv_heads, dim), case, device, seed + 9)
    rows = {"q_BHD": turn["q_BHD"], "k_BGD": turn["k_BGD"], "v_BGD": v_BGD}
    columns = dim if case.visible == "ragged" else 0
    sums = {"sums_BGC": torch.randn(case.batch, case.kv_heads, columns, generator=generator).to(device)}
    angles = {"cos_BD": turn["cos_BD"], "sin_BD": turn["sin_BD"]}
    return rows | angles | {"lead_GDR": lead, "rest_GDQ": rest, "place_B": place_B} | caches | sums


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: queries, keys, values and sums read and written, the basis, cosines and sines read.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    rows = 2 * (case.q_heads + 2 * case.kv_heads + 1) * case.head_dim + case.kv_heads * case.low_dims
    sums = 8 * case.batch * case.kv_heads * case.head_dim if case.visible == "ragged" else 0
    return (case.batch * rows + case.kv_heads * case.head_dim**2) * case.item_bytes + sums


def flops(case: Case) -> int:
    """Count the products with the basis.

    Args:
        case: Its shape.

    Returns:
        Operations.
    """
    return 2 * case.batch * (case.q_heads + case.kv_heads) * case.head_dim**2


OP = Op(
    "append_row", "3", __name__, append_row, make, moved_bytes, flops, TESTED + SHORT, compare_all,
    writes=("keys_BGSD", "values_BGSD", "leads_BGSW", "sums_BGC"),
)  # fmt: skip
