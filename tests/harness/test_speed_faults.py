"""What a speed's record says when something is wrong: it is never a number that looks like any other."""

import os
from contextlib import contextmanager, nullcontext

import pytest
import torch

from lacuna.harness import gpu_watch
from lacuna.harness.engine import Engine
from lacuna.harness.gpu_watch import Readings
from lacuna.harness.parity import Parity
from lacuna.harness.tasks import decode_time
from lacuna.models.rows import Rows

TASK = "method: {topk: {rows: 8}}\ntask: {decode_time: {prompt: 64, steps: 2, prefills: 1, engine: static}}\n"


def record_of(sweep, run):
    records, _ = run(sweep(TASK))
    (record,) = records.values()
    return record


def _no_room_on_the_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 GiB. GPU 0 has a total capacity ...")


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: torch.empty(2**59), f"{2**61} bytes"),  # of this machine's memory
        (_no_room_on_the_gpu, "Tried to allocate 96.00 GiB"),
    ],
    ids=["cpu", "cuda"],
)
def test_no_memory_is_a_status_with_the_bytes_asked_for(ask, told, sweep, run, monkeypatch):
    """A shape that does not fit would end the sweep, or be told as a mistake in the settings."""
    monkeypatch.setattr(decode_time, "engine", lambda *_: ask())
    record = record_of(sweep, run)
    assert record.status == "oom", record.reason
    assert told in record.reason
    assert record.metrics == {}


@pytest.mark.parametrize("steps", [2, 7, 64])
def test_an_engine_copies_no_cache(steps, sweep, run, monkeypatch):
    """A cache with room for one row too few would be held twice while its places are fixed: twice the peak memory."""
    places, own = [], Rows.pin

    def pin(self, *more):
        before = self.view.data_ptr()
        own(self, *more)
        places.append((before, self.view.data_ptr()))

    monkeypatch.setattr(Rows, "pin", pin)
    records, _ = run(sweep(TASK.replace("steps: 2", f"steps: {steps}")))
    assert [record.status for record in records.values()] == ["ok"]
    assert len(places) >= 4
    assert all(before == after for before, after in places)


def test_logits_that_are_no_numbers_are_told(sweep, run, monkeypatch):
    """A cache read out of bounds would give a fast step, and nobody would look at its tokens."""
    own = Engine.step

    def step(self):
        own(self)
        self.logits.fill_(float("nan"))

    monkeypatch.setattr(Engine, "step", step)
    record = record_of(sweep, run)
    assert (record.status, record.reason) == ("invalid", "the last step's logits are not finite")


def test_a_speed_without_a_parity_check_is_invalid(sweep, run, monkeypatch):
    """A time would stand beside others although nobody held its ops against float64."""

    @contextmanager
    def unchecked():
        yield Parity()

    monkeypatch.setattr(decode_time, "checked", unchecked)
    record = record_of(sweep, run)
    assert record.status == "invalid"
    assert "nothing was verified" in record.reason


def test_a_replay_that_gives_other_logits_is_invalid(sweep, run, monkeypatch):
    """A graph that reads where the step before did not write would be timed as if it decoded."""
    monkeypatch.setattr(Engine, "capture", lambda _: None)
    monkeypatch.setattr(Engine, "agrees", lambda _: False)
    records, _ = run(sweep(TASK.replace("static", "graph")))
    (record,) = records.values()
    assert record.status == "invalid"
    assert "other logits than the same step made eagerly" in record.reason


PARTS = ("copy", "prefill", "decode", "stages", "dense")


@pytest.mark.parametrize("part", PARTS)
def test_times_of_a_gpu_that_another_process_uses_are_invalid(part, sweep, run, monkeypatch):
    """A run left behind on the GPU would take every other time slice of any time in the row, and nobody would be told."""
    shared = Readings(at_ms=[0.1], sm_mhz=[1980.0], power_w=[600.0], processes=[os.getpid(), 17])
    alone = Readings(at_ms=[0.1], sm_mhz=[1755.0], power_w=[500.0], processes=[os.getpid()])
    left = [shared if one == part else alone for one in PARTS]

    class Watch(nullcontext):
        @property
        def readings(self):
            return left.pop(0)

    monkeypatch.setattr(gpu_watch, "GpuWatch", lambda _: Watch(Watch()))
    monkeypatch.setattr(decode_time, "_stages", lambda *_: {"attend": 0.01})
    record = record_of(sweep, run)
    assert record.status == "invalid"
    assert f"({part}; process ids 17)" in record.reason
    assert [sample["timed"] for sample in record.samples if sample.get("phase") == "gpu"] == list(PARTS)
    assert record.metrics["sm_mhz_min"] == (1980.0 if part == "decode" else 1755.0)


def test_a_step_says_how_long_the_host_took_to_launch_it(sweep, run):
    """A host that launches no faster than the device computes would be taken for the method."""
    record = record_of(sweep, run)
    launches = [sample["launch_ms"] for sample in record.samples if sample.get("phase") == "decode"]
    assert len(launches) == 2
    assert min(launches) > 0
    assert min(launches) <= record.metrics["launch_ms_median"] <= max(launches)
