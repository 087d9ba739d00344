"""A launch timed among others like it: data of their own, and no number where it would be of something else."""

from dataclasses import asdict

import pytest
import torch

from lacuna.kernels import bench as bench_module
from lacuna.kernels import chain
from lacuna.kernels.bench import bench
from lacuna.kernels.chain import Room, chain_ms, length_of, storage_bytes
from lacuna.kernels.op import Case, load_op
from lacuna.kernels.row import Row

CPU = torch.device("cpu")
SMALL = Case("small", 1, 4, 2, 96, head_dim=64, low_dims=16, kept=24, dtype="float32", visible="full")
WIDE = Room(cache_bytes=0, free_bytes=2**40)


@pytest.fixture
def clock(monkeypatch):
    """A graph is the call itself, and takes 12 ms."""
    monkeypatch.setattr(chain, "captured", lambda call: call)
    monkeypatch.setattr(chain, "sample_ms", lambda call, *_: call() or (12.0, 12.0, 99.0))


def test_each_launch_of_a_chain_has_data_of_its_own(clock):
    """Broken: launches share an input, which the second finds in L2, or write over what another reads."""
    op, seen = load_op("swap_row"), []
    inputs = op.make(SMALL, CPU, 0)
    before = op.fresh(inputs)
    assert chain_ms(lambda one: seen.append(one) or op.eager(**one), inputs, 4, CPU, 3) == 3.0
    for name in (name for name, value in inputs.items() if torch.is_tensor(value)):
        assert len({one[name].untyped_storage().data_ptr() for one in (inputs, *seen)}) == 5, name
    for name in op.writes:
        assert torch.equal(inputs[name], before[name]), name
        assert all(torch.equal(one[name], seen[0][name]) for one in seen), name
    assert not torch.equal(seen[0]["numbers_BGS"], before["numbers_BGS"])


def test_a_copy_lies_as_the_original_does(clock):
    """Broken: a cache with gaps, or a part of one, is timed as a tensor without."""
    keys, seen = torch.randn(2, 8, 6), []
    chain_ms(seen.append, {"keys": keys.mT[:, 1:], "lead": keys[..., :2], "scale": 0.5}, 2, CPU, 1)
    for one in seen:
        assert (one["keys"].stride(), one["keys"].storage_offset()) == (keys.mT.stride(), 1)
        assert one["keys"].untyped_storage().data_ptr() == one["lead"].untyped_storage().data_ptr()
        assert torch.equal(one["keys"], keys.mT[:, 1:])
        assert one["scale"] == 0.5


def test_memory_that_two_inputs_share_counts_once():
    """Broken: half as many launches as there is room for."""
    keys = torch.zeros(4, 8)
    assert storage_bytes({"keys": keys, "lead": keys[:, :2], "scale": 0.5}) == keys.nbytes


def test_a_chain_is_as_long_as_there_is_room_for():
    """Broken: a long chain of large caches ends in no memory, or a short one of small ones is timed in L2."""
    inputs = {"keys": torch.zeros(1000, dtype=torch.uint8), "none": None}
    assert length_of(inputs, 500, WIDE) == 32
    assert length_of(inputs, 500, Room(0, 7999)) == 7
    assert length_of(inputs, 500, Room(0, 3999)) == 0
    assert length_of(inputs, 500, Room(4000, 2**40)) == 32
    assert length_of(inputs, 499, Room(4000, 2**40)) == 0


def test_addresses_are_not_copied():
    """Broken: copies of addresses point at the same memory, and the chain is said to have data of its own."""
    op = load_op("sum_norm")
    assert length_of(op.make(SMALL, CPU, 0), 2**40, WIDE) == 0


def test_a_row_tells_its_share_in_a_chain(clock, monkeypatch):
    """Broken: the share is of the time alone, or of all launches together."""
    monkeypatch.setattr(bench_module, "room_of", lambda _: WIDE)
    row, inputs = Row("gate", "small", bytes=1500, ceiling_gb_s=0.01, median_ms=9.0), {"x": torch.zeros(8)}
    told = bench_module._in_chain(row, SMALL, lambda _: None, inputs, CPU)
    assert told.chain_ms == 12.0 / 32
    assert told.percent_in_chain == pytest.approx(100 * 1500 / (12.0 / 32) / 1e6 / 0.01)
    monkeypatch.setattr(bench_module, "room_of", lambda _: Room(2**30, 2**40))
    assert bench_module._in_chain(row, SMALL, lambda _: None, inputs, CPU) == row
    failed = Row("gate", "small", status="failed")
    assert bench_module._in_chain(failed, SMALL, lambda _: None, inputs, CPU) == failed


def test_a_chain_without_memory_leaves_the_row(monkeypatch):
    """Broken: a row that was verified and timed is told as one that did not fit."""

    def too_long(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench_module, "room_of", lambda _: WIDE)
    monkeypatch.setattr(bench_module, "chain_ms", too_long)
    row, inputs = Row("gate", "small", bytes=1500, ceiling_gb_s=0.01, median_ms=9.0), {"x": torch.zeros(8)}
    assert bench_module._in_chain(row, SMALL, lambda _: None, inputs, CPU) == row


def test_a_cpu_has_no_chain():
    """Broken: times of a CPU's calls, or of an interpreter, are told as those of launches in a graph."""
    row = bench(load_op("gather_decode"), SMALL, CPU, ceiling_gb_s=10.0)
    assert row["median_ms"]
    assert (row["chain_ms"], row["percent_in_chain"]) == (None, None)
    assert set(row) == set(asdict(Row("gate", "small")))
