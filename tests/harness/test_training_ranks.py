"""Training on several ranks: the result is that of one."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from mpirun import mpirun  # noqa: E402
from training_cells import assert_close, train, write_sweep  # noqa: E402

from lacuna.models.load import write_folder  # noqa: E402
from lacuna.results.store import Store  # noqa: E402

FEWER = {"tokens": 2048, "lengths": [64], "shares": [1.0], "planted": [0.0], "attention": "landmark", "block": 8}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with what one rank trained, and what two did: both trainings, as starting two ranks takes longest."""
    folder = tmp_path_factory.mktemp("ranks")
    record, store = train(folder, "base")
    write_folder(store.artifact(record.key), folder / "checkpoint")
    taught = {"model": {"path": "checkpoint"}, "optimiser": "adamw", "rate": 0.001, **FEWER}
    alone = {"replicated": train(folder, "one"), "landmarks": train(folder, "one", **taught)}
    sweeps = {"replicated": write_sweep(folder, "replicated"),
              "landmarks": write_sweep(folder, "landmarks", weights="sharded", **taught)}  # fmt: skip
    on_two_ranks(folder, sweeps)
    return folder, alone


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["replicated", "landmarks"])
def test_two_ranks_train_what_one_does(kind, both):
    """A result that depends on the number of ranks cannot be compared with anybody's.

    Rows that are added for landmarks would be lost, or random, in a model that is cut over ranks.
    """
    folder, alone = both
    same(alone[kind], folder / kind)


@pytest.mark.mpi
@pytest.mark.slow
def test_two_ranks_train_in_slices_what_one_does_whole(tmp_path):
    """Moments, or gradients, of a slice that belong to another one would train another model."""
    alone = train(tmp_path, "one", optimiser="adamw")
    on_two_ranks(tmp_path, {"sharded": write_sweep(tmp_path, "sharded", optimiser="adamw", weights="sharded")})
    same(alone, tmp_path / "sharded")


def on_two_ranks(folder, sweeps):
    """Run sweeps, each into a store of its name, one after the other in the same two processes."""
    commands = [["run", path, "--set", "ranks=2", "--store", folder / name] for name, path in sweeps.items()]
    mpirun(2, HERE / "cli_worker.py", *[word for command in commands for word in (*command, "then")][:-1])


def same(alone, root):
    """Two ranks ended well, with the curve and weights of one."""
    assert alone[0].status == "ok", alone[0].trace
    store = Store(root)
    (record,) = store.records()
    assert record.status == "ok", record.trace
    assert_close(alone, (record, store), atol=2e-4, rtol=2e-4)
