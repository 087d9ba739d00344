"""A copy of as many bytes as an operation moves: its places in memory, and where it has no room."""

import pytest
import torch

from lacuna.kernels import copied

CPU = torch.device("cpu")


def test_what_has_no_time_is_held_against_no_copy():
    """Broken: a row that failed has a share."""
    nothing = {"copy_ms": None, "percent_of_copy": None}
    assert copied.held_against_copy({"bytes": 100, "median_ms": None}, CPU) == nothing


def test_the_fastest_place_of_a_copy_counts(monkeypatch):
    """Broken: one place in memory, or the last, stands for what a copy can take."""
    times, seen = iter([3.0, 1.0, 2.0]), []

    def sample(copy, *_):
        seen.append(copy().data_ptr())
        return (next(times),) * 5

    monkeypatch.setattr(copied, "sample_ms", sample)
    assert copied.copied_ms(2**20, CPU) == 1.0
    assert len(set(seen)) == 3


def test_a_copy_without_room_is_none_and_other_errors_end_it(monkeypatch):
    """Broken: bench ends where an operation's bytes have no room twice, or hides that a GPU has failed."""
    row = {"bytes": 2**60, "median_ms": 1.0}
    assert copied.held_against_copy(row, CPU) == {"copy_ms": None, "percent_of_copy": None}

    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(copied, "copied_ms", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        copied.held_against_copy(row, CPU)


def test_a_copy_of_more_bytes_takes_longer():
    """Broken: something other than the bytes asked for is copied."""
    assert copied.copied_ms(2**28, CPU) > 20 * copied.copied_ms(2**18, CPU) > 0
