"""What a speed's record says when something is wrong: it is never a number that looks like any other."""

from contextlib import contextmanager

import pytest
import torch

from lacuna.harness.engine import Engine
from lacuna.harness.parity import Parity
from lacuna.harness.tasks import decode_time

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
