"""Energy is measured where it can be, and nowhere does it cost the times."""

import sys
import types

import pytest
import torch

from lacuna.harness.timing import EnergyMeter


class NVMLError(Exception):
    """As pynvml's."""


@pytest.fixture
def nvml(monkeypatch):
    """A GPU whose NVML is a stand-in; gives the stand-in."""
    module = types.ModuleType("pynvml")
    module.NVMLError, module.nvmlInit = NVMLError, lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    readings = iter((1500.0, 4000.0))
    module.nvmlDeviceGetTotalEnergyConsumption = lambda handle: next(readings)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="17"))
    return module


def fail(*_):
    raise NVMLError


def test_joules_are_the_counters_difference(nvml):
    """Energy would be off by the thousand that millijoules are, or begin when the machine was started."""
    assert EnergyMeter(torch.device("cuda")).joules() == 2.5


@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"])
def test_times_are_kept_where_no_counter_is(nvml, monkeypatch, name):
    """In a container without NVML's library, or on a slice of a GPU, every timed cell would be an error."""
    monkeypatch.setattr(nvml, name, fail)
    assert EnergyMeter(torch.device("cuda")).joules() is None
