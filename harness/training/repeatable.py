"""Sums in one order: the same batches give the same weights again, bit for bit, also on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic

FREE = "torch cannot put the sums of this training in order: taken up again, it will be near what it would have been"


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Under it torch takes kernels that add up in an order of their own choice, not in that in which blocks end.

    Else the gradient of torch's fused attention is another one each time, and a training that was killed and taken up
    again is near what it would have been, but not the same. Compiled kernels are then cut by rule, not by what was
    fastest in a trial. An operation that has no such kernel is an error. Where matrices were multiplied on the GPU
    before cuBLAS was told (`harness/world.py`), torch would refuse to go on: there it is a warning, and sums are free.
    """
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    if not _multiplies(device):
        warnings.warn(FREE, stacklevel=2)
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def _multiplies(device: torch.device) -> bool:
    one = torch.ones(1, 1, device=device)
    try:
        one @ one
    except RuntimeError:
        return False
    return True
