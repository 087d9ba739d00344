"""Cases of the operations that act on many query rows at once, and what they have in common.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from .op import Case, Inputs
from .visible import draw

Layout = Literal["plain", "padded", "packed"]


@dataclass(frozen=True)
class RowsCase(Case):
    """A case with many query rows; `rows` is S.

    Attributes:
        queries: T; all S rows if 0.
        block: Rows of a block, of the operations that know blocks.
        layout: "plain": one document; "padded": padding at the left of the first sequence, at the right of the last;
            "packed": several documents in a row, with padding between some.
    """

    queries: int = 0
    block: int = 0
    layout: Layout = "plain"

    @property
    def new(self) -> int:
        """T."""
        return self.queries or self.rows

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it may see, of one head; every layout counts as plain."""
        return sum(range(self.rows - self.new + 1, self.rows + 1))


class Tiles(NamedTuple):
    """How a kernel over many query rows is cut.

    Attributes:
        queries: Query rows of a tile; a power of two, at least 16.
        keys: Key rows of a tile; a power of two, at least 16.
        num_warps: Warps of a block.
        num_stages: Tiles in flight.
    """

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def tiles_of(case_tiles: Tiles, item_bytes: int, head_dim: int) -> Tiles:
    """Shrink tiles until they fit where elements are wide or rows long; float32 runs on the CUDA cores in any case.

    Args:
        case_tiles: Tiles for 2 bytes an element and 128 dims.
        item_bytes: Bytes of one element.
        head_dim: D.

    Returns:
        The tiles.
    """
    if item_bytes > 2:
        return Tiles(max(16, case_tiles.queries // 4), max(16, case_tiles.keys // 2), case_tiles.num_warps, 1)
    if head_dim > 128:
        return Tiles(max(16, case_tiles.queries // 2), max(16, case_tiles.keys // 2), case_tiles.num_warps, 2)
    return case_tiles


def draw_starts(case: RowsCase, device: torch.device) -> torch.Tensor | None:
    """Draw the first row of each row's document, as the layout says.

    Args:
        case: Its shape.
        device: Where the tensor lives.

    Returns:
        (B, S) int32 that never falls along S; None where the layout is plain.
    """
    if case.layout == "plain":
        return None
    start_BS = torch.zeros(case.batch, case.rows, dtype=torch.int32)
    if case.layout == "padded":
        start_BS[0] = case.rows // 3
        start_BS[-1, case.rows - case.rows // 5 :] = case.rows
        return start_BS.to(device)
    for b in range(case.batch):
        for share in (0.2, 0.37, 0.8):
            border = int(case.rows * share) + 5 * b
            start_BS[b, border - 3 * (b % 2) :] = border  # padding of three rows, or none
    return start_BS.clamp(max=case.rows).to(device)


def draw_qkv(case: RowsCase, device: torch.device, seed: int) -> Inputs:
    """Draw queries, keys and values.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        q_BHTD, k_BGSD and v_BGSD.
    """
    cache = (case.batch, case.kv_heads, case.rows, case.head_dim)
    return {
        "q_BHTD": draw((case.batch, case.q_heads, case.new, case.head_dim), case, device, seed + 1),
        "k_BGSD": draw(cache, case, device, seed + 2),
        "v_BGSD": draw(cache, case, device, seed + 3),
    }


def draw_first(case: RowsCase, device: torch.device) -> torch.Tensor:
    """Draw the first row that is no padding.

    Args:
        case: In a padded layout each sequence has another number of rows before its text.
        device: Where the tensor lives.

    Returns:
        (B,) int32.
    """
    first_B = torch.zeros(case.batch, dtype=torch.int32)
    if case.layout == "padded":
        first_B = (torch.arange(case.batch, dtype=torch.int32) * 11 + case.rows - case.new + 2) % case.rows
    return first_B.to(device)
