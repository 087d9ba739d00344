"""Sums in one order: the same batches give the same weights again, bit for bit, also on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic

UNTOLD = (
    "the sums of a training on this GPU cannot be put in order, since cuBLAS was told otherwise: "
    "set CUBLAS_WORKSPACE_CONFIG=:4096:8 before the start, or say sums: free"
)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Under it torch takes kernels that add up in an order of their own choice, not in that in which blocks end.

    Else the gradient of torch's fused attention is another one each time, and a training that was killed and taken up
    again is near what it would have been, but not the same. Compiled kernels are then cut by rule, not by what was
    fastest in a trial. An operation that has no such kernel is an error.

    Raises:
        ValueError: the environment tells cuBLAS other than `harness/world.py` does, and torch refuses to multiply.
    """
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    try:
        _multiply(device)
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def _multiply(device: torch.device) -> None:
    one = torch.ones(1, 1, device=device)
    try:
        one @ one
    except RuntimeError as error:
        if "CUBLAS_WORKSPACE_CONFIG" in str(error):
            raise ValueError(UNTOLD) from error
        raise
