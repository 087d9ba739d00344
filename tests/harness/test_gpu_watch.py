"""What the driver says of a GPU while something is timed."""

import os
import sys
import types
from itertools import chain, repeat

import pytest
import torch

from lacuna.harness.gpu_watch import GpuWatch, GpuWatches, Readings, intruders, samples, summary


class NVMLError(Exception):
    """As pynvml's."""


def fail(*_):
    raise NVMLError


@pytest.fixture
def nvml(monkeypatch):
    """A GPU whose NVML is a stand-in: its clock falls once, by the power cap; gives the stand-in."""
    module = types.ModuleType("pynvml")
    module.NVMLError, module.nvmlInit, module.NVML_CLOCK_SM = NVMLError, lambda: None, 1
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    clocks, reasons = chain([1980, 1110], repeat(1980)), chain([1, 0x4], repeat(0))
    module.nvmlDeviceGetClockInfo = lambda _, kind: next(clocks) if kind == 1 else 0
    module.nvmlDeviceGetPowerUsage = lambda _: 650_000
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda _: next(reasons)
    module.nvmlDeviceGetComputeRunningProcesses = lambda _: [types.SimpleNamespace(pid=os.getpid())]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="17"))
    return module


def watched(until=3):
    with GpuWatch(torch.device("cuda"), every_s=0.001) as watch:
        while len(watch.readings.sm_mhz) < until and watch._thread.is_alive():
            watch._thread.join(0.001)
    return watch.readings


def test_a_clock_that_falls_is_told_with_its_reason(nvml):
    """A step that a power cap made slow would be told as the method's time."""
    found = watched()
    assert found.sm_mhz[:3] == [1980, 1110, 1980]
    assert found.held_down == ["power cap"]
    assert summary([found, Readings(sm_mhz=[1500.0], power_w=[50.0])]) == {
        "sm_mhz_median": 1500.0,
        "sm_mhz_min": 1110.0,
        "power_w": 700.0,
    }


def test_another_process_on_the_gpu_is_named(nvml):
    """A GPU that serves two processes in turns would give times twice as long, and nobody would know why."""
    both = [types.SimpleNamespace(pid=os.getpid()), types.SimpleNamespace(pid=17)]
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda _: both
    ranks = [{"prefill": watched(1), "decode": Readings()}]
    assert "(prefill; process ids 17)" in intruders(ranks, [os.getpid()])
    assert intruders(ranks, [os.getpid(), 17]) == ""


def test_process_ids_of_another_namespace_accuse_nobody(nvml):
    """In a container the driver may tell the host's ids, and every record of a run of one's own would be invalid."""
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda _: [types.SimpleNamespace(pid=17)]
    assert intruders([{"decode": watched(1)}], [os.getpid()]) == ""


@pytest.mark.parametrize(
    ("name", "told_of"),
    [
        ("nvmlInit", set()),
        ("nvmlDeviceGetClockInfo", {"power_w"}),
        ("nvmlDeviceGetPowerUsage", {"sm_mhz_median", "sm_mhz_min"}),
        ("nvmlDeviceGetComputeRunningProcesses", {"power_w", "sm_mhz_median", "sm_mhz_min"}),
    ],
)
def test_nothing_is_told_that_the_driver_does_not_know(nvml, monkeypatch, name, told_of):
    """Where NVML refuses a reading, a timed cell would be an error, or have a clock of zero."""
    monkeypatch.setattr(nvml, name, fail)
    with GpuWatch(torch.device("cuda"), every_s=0.001) as watch:
        pass
    told = watch.readings
    assert intruders([{"decode": told}], [os.getpid()]) == ""
    assert summary([told]).keys() == told_of
    assert bool(samples([{"decode": told}])) == bool(told_of)


def test_a_cpu_has_no_readings():
    """A CPU's record would have a GPU's clock."""
    with GpuWatch(torch.device("cpu")) as watch:
        pass
    assert watch.readings == Readings()


def test_each_part_has_readings_of_its_own(nvml, monkeypatch):
    """The clock beside a step would be that of the prefill before it, which draws other power."""
    told, ask = [], nvml.nvmlDeviceGetClockInfo
    monkeypatch.setattr(nvml, "nvmlDeviceGetClockInfo", lambda *of: told.append(ask(*of)) or told[-1])
    watches = GpuWatches(torch.device("cuda"))
    for part in ("prefill", "decode"):
        with watches.over(part):
            pass
    first, then = samples([watches.parts])
    assert (first["rank"], first["timed"], then["timed"]) == (0, "prefill", "decode")
    assert first["sm_mhz"]
    assert then["sm_mhz"]
    assert [*first["sm_mhz"], *then["sm_mhz"]] == told
