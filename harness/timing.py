"""Clocks, memory and energy: device events on a GPU, a monotonic clock on a CPU, always after a synchronisation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch


def nothing() -> None:
    """Do nothing between repeats."""


def times_ms(
    work: Callable[[], object],
    repeats: int,
    warmup: int,
    device: torch.device,
    between: Callable[[], object] = nothing,
) -> list[float]:
    """Milliseconds of each repeat, raw.

    Args:
        work: what to time; its results are dropped.
        repeats: how often it counts.
        warmup: how often it runs before.
        device: where it runs.
        between: what is done outside of the time: after each repeat on a CPU; once, after the last, on a GPU, where
            repeats follow each other without a gap.
    """
    for _ in range(warmup):
        work()
    clock = _gpu_times if device.type == "cuda" else _cpu_times
    return clock(work, repeats, between)


def _cpu_times(work: Callable[[], object], repeats: int, between: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
        between()
    return times


def _gpu_times(work: Callable[[], object], repeats: int, between: Callable[[], object]) -> list[float]:
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    between()
    return [a.elapsed_time(b) for a, b in pairwise(marks)]


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of this rank's weights that a step reads: all, but of a table of embeddings only a few rows."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    whole = sum(weight.nbytes for weight in model.parameters())
    tied = head is not None and head.weight is table.weight
    return whole if tied else whole - int(table.weight.nbytes)


class HostClock:
    """A step that also tells how many milliseconds the host took to launch it; the work may still be under way.

    Where that is longer than the step takes on the device, the host is what one has timed.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self.ms: list[float] = []

    def __call__(self) -> None:
        """Do the work."""
        start = time.perf_counter()
        self._work()
        self.ms.append((time.perf_counter() - start) * 1e3)


class MemoryMeter:
    """Peak and resident memory of this process: of the GPU there, of the process (VmHWM, VmRSS) on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif (reset := Path("/proc/self/clear_refs")).exists():
            reset.write_text("5", encoding="ascii")

    def read(self) -> dict[str, float]:
        """{"peak_gib", "resident_gib"}; empty where the system does not say."""
        if self.device.type == "cuda":
            peak, now = torch.cuda.max_memory_allocated(self.device), torch.cuda.memory_allocated(self.device)
            return {"peak_gib": peak / 2**30, "resident_gib": now / 2**30}
        status = Path("/proc/self/status")
        if not status.exists():
            return {}
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines() if ":" in line)
        kib = {name: float(lines[name].split()[0]) for name in ("VmHWM", "VmRSS")}
        return {"peak_gib": kib["VmHWM"] / 2**20, "resident_gib": kib["VmRSS"] / 2**20}


class EnergyMeter:
    """Joules that this rank's GPU took, from NVML's counter; says nothing where there is no counter."""

    def __init__(self, device: torch.device) -> None:
        self._handle = None
        if device.type == "cuda":
            self._handle, self._nvml = nvml_handle()
        self._start = self._read()

    def _read(self) -> float | None:
        if self._handle is None:
            return None
        torch.cuda.synchronize()
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError:
            return None

    def joules(self) -> float | None:
        """Since the meter was made."""
        now = self._read()
        return None if now is None or self._start is None else now - self._start


def nvml_handle() -> tuple[Any, Any]:
    """NVML's handle of the current GPU, found by its UUID since CUDA_VISIBLE_DEVICES renumbers.

    None without NVML: its package, its library (which many containers lack), or a GPU that it knows (a slice of one).
    """
    try:
        import pynvml  # noqa: PLC0415 - optional: only GPU machines have it
    except ImportError:
        return None, None
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()), pynvml
    except pynvml.NVMLError:
        return None, None
