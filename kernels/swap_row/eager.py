"""A new row put in the place of the one with the lowest mark, in plain torch.

Shape legend: B batch, G KV heads, S rows in the cache, D head dim.
"""

from typing import NamedTuple

import torch

from ..op import Age


class Swapped(NamedTuple):
    """The rows that left, and the caches, which are those that were given.

    Attributes:
        key_BGD: Key of the row that left; zeros where none could.
        value_BGD: Its value.
        slot_BG: (B, G) int32 where it lay; -1 where none could leave, and nothing was written.
        keys_BGSD: Keys.
        values_BGSD: Values.
        marks_BGS: Marks.
        numbers_BGS: Token numbers.
    """

    key_BGD: torch.Tensor
    value_BGD: torch.Tensor
    slot_BG: torch.Tensor
    keys_BGSD: torch.Tensor
    values_BGSD: torch.Tensor
    marks_BGS: torch.Tensor
    numbers_BGS: torch.Tensor


def swap_row(
    k_BGD: torch.Tensor,
    v_BGD: torch.Tensor,
    number_1: torch.Tensor,
    recent_B: torch.Tensor,
    keys_BGSD: torch.Tensor,
    values_BGSD: torch.Tensor,
    marks_BGS: torch.Tensor,
    numbers_BGS: torch.Tensor,
    age: Age = "new",  # noqa: ARG001
) -> Swapped:
    """Let the row with the lowest mark leave a full cache, the oldest of equals, and write the new one, without a mark.

    This is a step of H2O (arXiv 2306.14048) before it attends. Rows do not move, so they stand in no order.

    Args:
        k_BGD: (B, G, D) new keys.
        v_BGD: (B, G, D) new values.
        number_1: (1,) int64 number of the new token.
        recent_B: (B,) int64 last rows that stay, the new one among them.
        keys_BGSD: (B, G, S, D), written.
        values_BGSD: (B, G, S, D), written.
        marks_BGS: (B, G, S) float32, written.
        numbers_BGS: (B, G, S) int64 token numbers, -1 for holes, which stay; written.
        age: Not used: launches of torch do not overlap.

    Returns:
        What left, and what was written.
    """
    old = (numbers_BGS >= 0) & (numbers_BGS <= number_1 - recent_B[:, None, None])
    mark = marks_BGS.masked_fill(~old, torch.inf)
    lowest = old & (mark == mark.amin(-1, keepdim=True))
    slot = numbers_BGS.masked_fill(~lowest, torch.iinfo(torch.int64).max).argmin(-1, keepdim=True)
    there = old.any(-1, keepdim=True)
    wide = slot[..., None].expand(-1, -1, -1, keys_BGSD.shape[3])
    key, value = (rows.gather(2, wide) for rows in (keys_BGSD, values_BGSD))
    keys_BGSD.scatter_(2, wide, torch.where(there[..., None], k_BGD[:, :, None], key))
    values_BGSD.scatter_(2, wide, torch.where(there[..., None], v_BGD[:, :, None], value))
    marks_BGS.scatter_(2, slot, torch.where(there, 0.0, marks_BGS.gather(2, slot)))
    numbers_BGS.scatter_(2, slot, torch.where(there, number_1, numbers_BGS.gather(2, slot)))
    place = torch.where(there, slot, -1)[..., 0].int()
    key, value = (torch.where(there, part[:, :, 0], 0.0) for part in (key, value))
    return Swapped(key, value, place, keys_BGSD, values_BGSD, marks_BGS, numbers_BGS)
