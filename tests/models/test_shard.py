"""Tensor parallelism by AxoNN: the same tokens, the same rows, the same logits as one rank."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest_models import make_model
from lacuna.models import shard

HERE = Path(__file__).parent
pytestmark = pytest.mark.mpi


def launch(ranks, *args):
    """Start a worker under mpirun; Open MPI needs leave to run as root and on few cores, MPICH knows no such flags."""
    mpirun = shutil.which("mpirun") or str(Path(sys.executable).parent / "mpirun")
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=True).stdout
    flags = ["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in said or "OpenRTE" in said else []
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    command = [mpirun, *flags, "-np", str(ranks), sys.executable, str(HERE / "tp_worker.py"), *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (6, 3), (8, 4)])
def test_two_ranks_equal_one(heads, groups, basis, tmp_path):
    """Heads, caches and bases live with their rank; a slip in any of them gives other tokens or other rows.

    Three groups do not divide by two ranks: a zero head pads them, and must neither change nor count.
    """
    path = basis(heads=groups)["basis"]
    launch(1, heads, groups, path, tmp_path / "one.pt")
    launch(2, heads, groups, path, tmp_path / "two.pt")
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=False) for n in ("one", "two"))
    for name, (logits, words, told) in one.items():
        torch.testing.assert_close(two[name][0], logits, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(two[name][1], words), name
        for phase in ("prefill", "decode"):
            assert two[name][2][phase] == pytest.approx(told[phase], rel=1e-12), name
        assert two[name][2]["bytes_held"] == told["bytes_held"], name


@pytest.mark.parametrize(
    ("family", "changes", "size", "words"),
    [
        ("llama", {"num_key_value_heads": 1}, 2, "2 ranks cannot share 1 key/value heads"),
        ("llama", {"num_key_value_heads": 4}, 3, "MLP of 100 does not divide by 3"),
        ("gpt_neox", {}, 2, "covers Llama-shaped models"),
    ],
)
def test_what_cannot_be_split_is_refused(family, changes, size, words):
    """A wrong split would give wrong numbers; the message must say what to do instead."""
    model = make_model(family, **changes, **({"intermediate_size": 100} if size == 3 else {}))
    with pytest.raises(ValueError, match=words):
        shard.split(model, 0, size)
