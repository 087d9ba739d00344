"""The rows that a sequence may look at: the interval [lo, hi) of its cache.

Shape legend: B batch, S rows in the cache.
"""

import torch

from .op import Case


def visible_rows(lo_B: torch.Tensor, hi_B: torch.Tensor, rows: int) -> torch.Tensor:
    """Mark the visible rows of each sequence.

    Args:
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        rows: S.

    Returns:
        (B, 1, S) bool, true where the row is visible.
    """
    row_S = torch.arange(rows, device=lo_B.device)
    return (row_S >= lo_B[:, None, None]) & (row_S < hi_B[:, None, None])


def draw_intervals(case: Case, device: torch.device, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the visible interval of each sequence of a case.

    Args:
        case: Its `visible` says whether intervals are full or ragged.
        device: Where the bounds live.
        seed: Of the draw.

    Returns:
        lo_B and hi_B, (B,) int32. The last of several ragged sequences is empty.
    """
    if case.visible == "full":
        lo_B = torch.zeros(case.batch, dtype=torch.int32, device=device)
        return lo_B, lo_B + case.rows
    generator = torch.Generator().manual_seed(seed)
    lo_B = torch.randint(0, case.rows // 4 + 1, (case.batch,), generator=generator, dtype=torch.int32)
    hi_B = torch.randint(case.rows // 2, case.rows + 1, (case.batch,), generator=generator, dtype=torch.int32)
    if case.batch > 1:
        hi_B[-1] = lo_B[-1]
    return lo_B.to(device), hi_B.to(device)


def draw(shape: tuple[int, ...], case: Case, device: torch.device, seed: int) -> torch.Tensor:
    """Draw normal numbers of a case's dtype.

    Args:
        shape: Of the tensor.
        case: Its dtype is used.
        device: Where the tensor lives; the draw is made there, since a full cache is gigabytes.
        seed: Of the draw.

    Returns:
        A contiguous tensor of that shape.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=case.torch_dtype, device=device)
