"""Tensor parallelism by AxoNN: the same tokens, the same rows, the same logits as one rank."""

import json
import sys
from pathlib import Path

import pytest
import torch
import tp_worker
from conftest_models import LAYERS, calibrations, make_model

from lacuna.harness.ranks import Ranks
from lacuna.harness.world import World
from lacuna.models import shard
from lacuna.results import plugins

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from mpirun import mpirun  # noqa: E402

pytestmark = pytest.mark.mpi


HEADS = [(4, 2), (6, 3), (8, 4)]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """Calibrations for each number of heads."""
    folders = {heads: tmp_path_factory.mktemp("basis") for heads in HEADS}
    return {(heads, groups): calibrations(folder, groups, queries=heads) for (heads, groups), folder in folders.items()}


@pytest.fixture(scope="module")
def on_two_ranks(calibrated, tmp_path_factory):
    """What two ranks compute, for all numbers of heads: starting them takes longest."""
    asked = [[*heads, {name: str(file) for name, file in files.items()}] for heads, files in calibrated.items()]
    path = tmp_path_factory.mktemp("ranks") / "two.pt"
    mpirun(2, HERE / "tp_worker.py", json.dumps(asked), path)
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(("heads", "groups"), HEADS)
def test_two_ranks_equal_one(heads, groups, calibrated, on_two_ranks):
    """Heads, caches and bases live with their rank; a slip in any of them gives other tokens or other rows.

    Three groups do not divide by two ranks: a zero head pads them, and must neither change nor count.
    """
    one = tp_worker.seen(World(Ranks(), "cpu"), heads, groups, calibrated[heads, groups])
    two = on_two_ranks[heads, groups]
    assert one.pop("sums") == (0, "")
    assert two.pop("sums") == (2 * LAYERS, "gloo all-reduce")  # those of one rank would add nothing, and cost as much
    for name in [name for name, found in two.items() if isinstance(found, str)]:
        assert "run on 1 rank" in two.pop(name), name  # a budget over all heads
        one.pop(name)
    assert len(two) > len(plugins.names("methods"))
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
