"""What a copy of as many bytes takes: the least that an operation of few bytes could, whose launch is part of its time.

A share of the bandwidth counts bytes alone. Where they take as long as a launch does, no kernel comes near to all of
it, nor does a copy from the device to itself, which is held against the operation here: alone, captured and with a cold
cache, as operations are timed. It is a kernel's copy: the runtime's own takes up to half longer between 10 and 250 MB.
"""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch

from .clock import captured, sample_ms

REPEATS = 50
# By where memory lies copies of as many bytes differ, above 200 MB by up to a tenth: the fastest of some counts.
PLACES = 3
# The operation was timed just before: the clocks are up.
SETTLE_MS = 20.0


def held_against_copy(row: Mapping[str, Any], device: torch.device) -> dict[str, float | None]:
    """Time a copy of as many bytes as a row's operation moves.

    Args:
        row: A `Row` as a dictionary.
        device: Where it was timed.

    Returns:
        `copy_ms` and `percent_of_copy`, as `Row` has them; nothing where the row has no time, or a copy no room.
    """
    try:
        ms = copied_ms(row["bytes"], device) if row["median_ms"] else None
    except RuntimeError as error:  # a CPU has no error of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        torch.cuda.empty_cache()
        ms = None
    return {"copy_ms": ms, "percent_of_copy": 100 * ms / row["median_ms"] if ms else None}


def copied_ms(moved_bytes: int, device: torch.device) -> float:
    """Time a kernel that reads and writes each number once; all places together take three times the bytes.

    Args:
        moved_bytes: Bytes read plus bytes written, each the half.
        device: CUDA: captured into a graph, with a cold cache; CPU: a call of torch.

    Returns:
        Milliseconds, the median at that of some places where it is least.
    """
    # Zeros could be moved faster than data.
    numbers = max(1, moved_bytes // 8)
    source = torch.randint(-(2**31), 2**31 - 1, (numbers,), dtype=torch.int32, device=device)
    sources = [source, *(source.clone() for _ in range(PLACES - 1))]
    copies = [partial(torch.neg, one, out=torch.empty_like(one)) for one in sources]
    return min(median(sample_ms(_captured(copy, device), device, REPEATS, SETTLE_MS)) for copy in copies)


def _captured(copy: Callable[[], object], device: torch.device) -> Callable[[], object]:
    return captured(copy) if device.type == "cuda" else copy
