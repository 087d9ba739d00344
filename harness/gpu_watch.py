"""What the driver says of a GPU while something is timed: clock, power, what holds the clock down, who else is there.

A step may slow down in the middle of a run for reasons outside of the program: a clock that was lowered, or a second
process that the GPU serves in turns. Without these readings such times look like any other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median
from threading import Event, Thread
from time import perf_counter
from typing import Any, Self

import torch

from .timing import nvml_handle

EVERY_S = 0.02
# NVML's bits of `clocks event reasons` that lower a clock under load (nvml.h)
HELD_DOWN = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat, told by the driver",
    0x40: "heat, told by the hardware",
    0x80: "power brake",
}


@dataclass
class Readings:
    """Of one rank's GPU, in the order of time.

    Attributes:
        at_ms: since the watch began.
        sm_mhz: clock of the multiprocessors; none where the driver does not tell.
        power_w: as the driver averages it; none where it does not tell.
        held_down: what lowered the clock in any reading.
        processes: ids of all processes that had the GPU open at the beginning or the end; none where the driver does
            not tell (it names at least the process that asks, or says nothing).
    """

    at_ms: list[float] = field(default_factory=list)
    sm_mhz: list[float] = field(default_factory=list)
    power_w: list[float] = field(default_factory=list)
    held_down: list[str] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)


class GpuWatch:
    """Reads a GPU's state on a thread of its own while it is entered; reads nothing where there is no NVML.

    Args:
        device: of this rank.
        every_s: between two readings; one takes about 0.1 ms, and the interpreter's lock for much less.
    """

    def __init__(self, device: torch.device, every_s: float = EVERY_S) -> None:
        self.readings, self._every_s, self._stop = Readings(), every_s, Event()
        known: tuple[Any, Any] = nvml_handle() if device.type == "cuda" else (None, None)
        self._handle, self._nvml = known

    def __enter__(self) -> Self:
        self._begun, self._thread = perf_counter(), Thread(target=self._read_on, daemon=True)
        if self._handle is not None:
            self._look_around()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._handle is not None:
            self._thread.join()
            self._look_around()

    def _read_on(self) -> None:
        while True:
            at_ms = (perf_counter() - self._begun) * 1e3
            clock = self._told(lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM))
            power = self._told(lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu))
            reasons = self._told(lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
            found = self.readings
            found.at_ms.append(round(at_ms, 1))
            found.sm_mhz += [] if clock is None else [float(clock)]
            found.power_w += [] if power is None else [power / 1e3]
            names = [name for bit, name in HELD_DOWN.items() if (reasons or 0) & bit]
            found.held_down += [name for name in names if name not in found.held_down]
            if self._stop.wait(self._every_s):
                return

    def _told(self, ask: Callable[[Any, Any], Any]) -> Any:
        try:
            return ask(self._nvml, self._handle)
        except self._nvml.NVMLError:
            return None

    def _look_around(self) -> None:
        running = self._told(lambda nvml, gpu: nvml.nvmlDeviceGetComputeRunningProcesses(gpu)) or []
        found = {int(process.pid) for process in running}
        # ids of another namespace say nothing of who they are
        if os.getpid() in found:
            self.readings.processes = sorted(found.union(self.readings.processes))


class GpuWatches:
    """One `GpuWatch` for each part of a run that is timed: what makes one part's times wrong makes its row wrong.

    Attributes:
        parts: this rank's readings, by part, in the order of time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.parts: dict[str, Readings] = {}

    @contextmanager
    def over(self, part: str) -> Iterator[None]:
        """Watch while this is entered."""
        with GpuWatch(self._device) as watch:
            yield
        self.parts[part] = watch.readings


def summary(ranks: list[Readings]) -> dict[str, float]:
    """The slowest GPU's clocks and the power of all of them; what a rank was not told is left out."""
    found = {}
    if ranks and all(one.sm_mhz for one in ranks):
        found["sm_mhz_median"] = min(median(one.sm_mhz) for one in ranks)
        found["sm_mhz_min"] = min(min(one.sm_mhz) for one in ranks)
    if ranks and all(one.power_w for one in ranks):
        found["power_w"] = sum(median(one.power_w) for one in ranks)
    return found


def samples(ranks: list[dict[str, Readings]]) -> list[dict[str, Any]]:
    """{"phase": "gpu", "rank", "timed": the part, and all `Readings`} for each part in which a rank read anything."""
    return [
        {"phase": "gpu", "rank": rank, "timed": part} | asdict(one)
        for rank, parts in enumerate(ranks)
        for part, one in parts.items()
        if one.at_ms
    ]


def intruders(ranks: list[dict[str, Readings]], own: list[int]) -> str:
    """What is wrong with times of a GPU that others use; empty if nobody is known to.

    Args:
        ranks: readings of each rank, by part.
        own: process ids of all ranks.
    """
    met = [(process, part) for parts in ranks for part, one in parts.items() for process in one.processes]
    strange = [(process, part) for process, part in met if process not in own]
    if not strange:
        return ""
    parts = ", ".join(dict.fromkeys(part for _, part in strange))
    named = ", ".join(map(str, sorted({process for process, _ in strange})))
    return (
        f"other processes had a GPU open while it was timed ({parts}; process ids {named}): end them, then time again"
    )
