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


@pytest.mark.mpi
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="replicated"),
        pytest.param({"optimiser": "adamw", "weights": "sharded"}, id="sharded", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_train_what_one_does(tmp_path, changes):
    """A result that depends on the number of ranks cannot be compared with anybody's."""
    same_on_two_ranks(tmp_path, **changes)


@pytest.mark.mpi
def test_two_ranks_teach_landmarks_to_a_checkpoint_cut_over_them(tmp_path):
    """Rows that are added for landmarks would be lost, or random, in a model that is cut over ranks."""
    record, store = train(tmp_path, "base")
    write_folder(store.artifact(record.key), tmp_path / "checkpoint")
    fewer = {"tokens": 2048, "lengths": [64], "shares": [1.0], "planted": [0.0], "attention": "landmark", "block": 8}
    same_on_two_ranks(tmp_path, model={"path": "checkpoint"}, optimiser="adamw", rate=0.001, weights="sharded", **fewer)


def same_on_two_ranks(folder, **changes):
    """Train alone with whole weights, then on two ranks as asked."""
    alone = train(folder, "one", **{**changes, "weights": "replicated"})
    assert alone[0].status == "ok", alone[0].trace
    sweep = write_sweep(folder, "two", **changes)
    mpirun(2, HERE / "cli_worker.py", "run", sweep, "--set", "ranks=2", "--store", folder / "two")
    store = Store(folder / "two")
    (record,) = store.records()
    assert record.status == "ok", record.trace
    assert_close(alone, (record, store), atol=2e-4, rtol=2e-4)
