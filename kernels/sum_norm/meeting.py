"""How ranks of one host know that what the others wrote for them is there: a number that only rises, for each row.

Shape legend: X ranks, C rows that there is room for, B texts.
"""

from typing import NamedTuple

import torch

# Looks at the flags before a rank counts as lost; one takes about a microsecond, a first compilation elsewhere minutes.
PATIENCE = 2**28


class Meeting(NamedTuple):
    """Where the ranks leave their parts and say so; each rank has its own, over the same memory.

    At its n-th sum every rank writes n into a place of its own with each of the others, for each row, and waits until
    all of them have written n with it. A rank that has passed sum n + 1 therefore knows that the others have read what
    it gave them for sum n: two places for parts, used in turn, need no second meeting.

    Attributes:
        parts_X: (X,) int64, addresses of the parts.
        flags_X: (X,) int64, addresses of (C, X) int32 each: the number of the last sum, by row and by who came to it.
        count_C: (C,) int32, how many sums of a row were made here.
        rank: which of X this is.
        memory: what must live as long as the addresses are used.
        patience: how often the flags are looked at before a rank is given up, and the sum is NaN.
    """

    parts_X: torch.Tensor
    flags_X: torch.Tensor
    count_C: torch.Tensor
    rank: int
    memory: tuple[torch.Tensor, ...]
    patience: int = PATIENCE


def addresses_of(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Give a kernel tensors of which it shall not know the number.

    Args:
        tensors: Contiguous; whoever asks keeps them alive.

    Returns:
        (X,) int64 on the device of the first, which may read all of them.
    """
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64).to(tensors[0].device)
