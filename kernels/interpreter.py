"""What Triton's interpreter cannot do, and the kernels therefore do around it."""

import os

import torch


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter; the variable must be set before Triton is first imported.

    Returns:
        True if they do.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


def upcasts(dtype: torch.dtype) -> bool:
    """Whether a kernel must cast to float32 right after each load.

    The interpreter computes on the raw bits of bfloat16, silently wrong; only its loads and casts up are right.

    Args:
        dtype: Of the tensors that the kernel loads.

    Returns:
        True for bfloat16 in the interpreter.
    """
    return interpreted() and dtype == torch.bfloat16


def storage_dtype(dtype: torch.dtype) -> torch.dtype:
    """Choose what a kernel stores: the interpreter's cast down to bfloat16 cuts off where a GPU rounds.

    Args:
        dtype: Of the result.

    Returns:
        float32 for bfloat16 in the interpreter, else the dtype itself.
    """
    return torch.float32 if upcasts(dtype) else dtype
