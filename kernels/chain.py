"""Time of one launch among others like it, each over data of its own, as the layers of a decode step are.

An operation that moves little is mostly launch and waits where it is timed alone. In a step the launches before and
behind it overlap with both, and this is the time that is left.
"""

from collections.abc import Callable
from copy import deepcopy
from statistics import median
from typing import NamedTuple

import torch

from .clock import captured, sample_ms
from .op import Inputs

FEWEST, MOST = 4, 32
MOST_BYTES = 20 * 10**9
CACHES = 4  # times the L2 cache that a chain moves, so that no launch finds what the replay before left there


class Room(NamedTuple):
    """What a device has room for.

    Attributes:
        cache_bytes: Its L2 cache.
        free_bytes: Memory that copies of inputs may take.
    """

    cache_bytes: int
    free_bytes: int


def room_of(device: torch.device) -> Room:
    """Ask a device.

    Args:
        device: A CUDA device.

    Returns:
        Its L2 cache, and half of its free memory: launches allocate, too.
    """
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return Room(torch.cuda.get_device_properties(device).L2_cache_size, min(MOST_BYTES, free // 2))


def length_of(inputs: Inputs, moved_bytes: int, room: Room) -> int:
    """Count the launches of a chain.

    Args:
        inputs: Of one launch.
        moved_bytes: Fewest bytes that it moves.
        room: Of the device.

    Returns:
        As many as there is room for; 0 where these are few or move too little, or where inputs hold more than tensors
        and numbers: a copy of addresses is none of what lies there.
    """
    if not all(torch.is_tensor(value) or isinstance(value, int | float | str | None) for value in inputs.values()):
        return 0
    length = min(MOST, room.free_bytes // max(1, storage_bytes(inputs)))
    return length if length >= FEWEST and length * moved_bytes >= CACHES * room.cache_bytes else 0


def storage_bytes(inputs: Inputs) -> int:
    """Count the memory behind the inputs; what two share counts once.

    Args:
        inputs: Of one launch.

    Returns:
        Bytes.
    """
    stored = (value.untyped_storage() for value in inputs.values() if torch.is_tensor(value))
    return sum({one.data_ptr(): one.nbytes() for one in stored}.values())


def chain_ms(
    call: Callable[[Inputs], object], inputs: Inputs, length: int, device: torch.device, repeats: int
) -> float:
    """Time a CUDA graph of launches, each over a copy of the inputs: strides and shared memory are copied as they are.

    Args:
        call: Launches one on the inputs that it is given.
        inputs: Of one launch.
        length: How many.
        device: A CUDA device.
        repeats: The most samples, of which the median counts.

    Returns:
        Milliseconds of a launch.
    """
    copies = [deepcopy(inputs) for _ in range(length)]

    def chain() -> None:
        for one in copies:
            call(one)

    return median(sample_ms(captured(chain), device, repeats)) / length
