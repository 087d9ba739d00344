"""Differences of weights: exact, and of this base alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lacuna.cli import main


@pytest.fixture
def folders(tmp_path):
    """A base, and tuned weights with two more rows."""
    dice = torch.Generator().manual_seed(0)
    base = {
        "embed": torch.randn(6, 4, generator=dice).bfloat16(),
        "layer": torch.randn(3, 3, generator=dice).bfloat16(),
    }
    tuned = {"embed": torch.cat([base["embed"] * 1.01, torch.randn(2, 4, generator=dice).bfloat16()]),
             "layer": base["layer"] + 1e4, "new": torch.ones(2)}  # fmt: skip
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    (tmp_path / "tuned" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path


def run(folder, *args):
    return main(["weights", args[0], *(str(folder / a) for a in args[1:])])


def test_recovers_every_bit(folders):
    """Weights that come back nearly right are other weights."""
    assert run(folders, "diff", "base", "tuned", "d.safetensors") == 0
    assert run(folders, "recover", "base", "d.safetensors", "again") == 0
    one, two = (load_file(folders / name / "model.safetensors") for name in ("tuned", "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n], two[n]) and one[n].dtype == two[n].dtype for n in one)
    assert (folders / "again" / "config.json").read_text() == (folders / "tuned" / "config.json").read_text()


def test_another_base_is_refused(folders, capsys):
    """The sum with another base would be weights that nobody trained."""
    run(folders, "diff", "base", "tuned", "d.safetensors")
    assert run(folders, "recover", "tuned", "d.safetensors", "again") == 2
    assert "needs another base" in capsys.readouterr().err
    assert not (folders / "again").exists()


def test_damage_is_told(folders, capsys):
    """A flipped bit would pass for the tuned weights."""
    run(folders, "diff", "base", "tuned", "d.safetensors")
    raw = bytearray((folders / "d.safetensors").read_bytes())
    raw[-3] ^= 64
    (folders / "d.safetensors").write_bytes(raw)
    assert run(folders, "recover", "base", "d.safetensors", "again") == 2
    assert "the file is damaged" in capsys.readouterr().err
    (folders / "d.safetensors").write_bytes(raw[:50])
    assert run(folders, "recover", "base", "d.safetensors", "again") == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("diff", "base", "tuned", "tuned/config.json"), "nothing is overwritten"),
        (("diff", "base", "nowhere", "d"), "holds no weights"),
        (("recover", "base", "base/model.safetensors", "again"), "is no difference"),
        (("recover", "base", "base/model.safetensors", "tuned"), "is not empty"),
    ],
)
def test_wrong_commands_are_answered(folders, capsys, args, words):
    """A wrong path would end in a traceback, or over somebody's files."""
    assert run(folders, *args) == 2
    assert words in capsys.readouterr().err
