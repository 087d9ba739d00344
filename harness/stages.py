"""Where a step's time goes, by what its kernels are for, from the profiler of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

Span = tuple[str, float, float]

# the beginning of a kernel's name, or a part of it -> what it is for; the first that fits counts
STAGES = (
    ("append", ("append_kernel", "swap_row_kernel", "put_turned", "grow_box", "lowest_row")),
    ("append", ("index_copy", "index_put", "indexFunc")),
    ("score", ("score_kernel", "score_and_keep", "score_and_weigh", "score_and_mark", "sparq")),
    (
        "select",
        ("select_kernel", "select_joint", "count_kernel", "tally", "write_kernel", "write_passing", "bound_kernel"),
    ),
    ("select", ("page_rows", "choose_by_weight")),
    ("whole", ("whole_kernel",)),  # score, select and gather in one launch
    ("gather", ("attend_chosen", "value_gather", "marked_values")),
    ("attend", ("attend_kernel", "attend_marked", "flash", "fmha", "cudnn_generated")),
    ("merge", ("combine_kernel", "merge_kernel", "fill_kernel", "share_kernel", "mark_kernel", "linear_decode")),
    ("collective", ("nccl", "one_shot", "all_reduce", "symm_mem", "sum_norm")),
    ("matmul", ("gemm", "gemv", "cutlass", "cublas", "nvjet", "splitk", "splitKreduce", "skinny_linear")),
)


def stage_of(kernel: str) -> str:
    """What a kernel is for; `other` if no name fits."""
    return next((stage for stage, names in STAGES if any(name in kernel for name in names)), "other")


def stage_ms(step: Callable[[], object], steps: int) -> dict[str, float]:
    """Milliseconds of kernels in a step, by stage; empty without a GPU.

    They are busy times, and add up to the time in which any kernel runs: gaps between kernels count nowhere.
    """
    if not torch.cuda.is_available():
        return {}
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for kernel, own_us in own_times([_span(event) for event in profiler.events() if _on_device(event)]):
        stage = stage_of(kernel)
        found[stage] = found.get(stage, 0.0) + own_us / 1e3 / steps
    return found


def own_times(spans: Iterable[Span]) -> list[tuple[str, float]]:
    """Of each kernel its name and how long it ran after all that had begun before it were over.

    A kernel that is launched while the one before still runs waits for it: that time is the other's.

    Args:
        spans: name, start and end.
    """
    found, over = [], float("-inf")
    for name, start, end in sorted(spans, key=lambda span: span[1:]):
        found.append((name, max(0.0, end - max(start, over))))
        over = max(over, end)
    return found


def _on_device(event: FunctionEvent) -> bool:
    return event.device_type.name == "CUDA" and not event.is_user_annotation


def _span(event: FunctionEvent) -> Span:
    return str(event.name), float(event.time_range.start), float(event.time_range.end)
