"""The script that a GPU machine runs, tried on a CPU: what it measures there is nothing, but every command works."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lacuna.results.plugins import ROOT


@pytest.fixture
def archive(monkeypatch):
    """archive.py, whose parts take no time: `ops` measures two rows, `grid` fails as often as the file FAILS is there."""
    spec = importlib.util.spec_from_file_location("archive", ROOT / "tests" / "gpu" / "archive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def command(part, folder, *, tiny):
        measured = f"cd {folder}; echo $GPU >> ../{part}.ran; (echo status; echo ok; echo failed) > {part}_h200.csv"
        return ["bash", "-c", f"{measured}; [ {part} = ops ] || [ ! -e ../FAILS ] # {tiny}"]

    monkeypatch.setattr(module, "command", command)
    monkeypatch.delenv("GPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    return module


def test_an_archive_goes_on_where_it_was_cut_off(archive, tmp_path, capsys):
    """An hour of a GPU would be spent again, or half of a part be taken for the whole."""
    (tmp_path / "FAILS").touch()
    assert archive.main([str(tmp_path), "ops", "grid"]) == 1
    assert "not finished: grid" in capsys.readouterr().out
    made = [path.name for path in (tmp_path / "archive").glob("*.csv")]
    assert len(made) == 1
    assert made[0].endswith("-h100-80gb-hbm3-ops.csv")
    (tmp_path / "FAILS").unlink()
    assert archive.main([str(tmp_path), "ops", "grid"]) == 0
    assert (tmp_path / "ops.ran").read_text() == "H100 80GB HBM3\n"
    assert (tmp_path / "grid.try1" / "grid_h200.csv").exists()
    lines = (tmp_path / "archive" / "README.md").read_text().splitlines()[2:]
    assert [line.rpartition(": ")[2] for line in lines] == ["1 failed, 1 ok |"] * 2


def test_a_trial_is_no_archive(archive, tmp_path, monkeypatch):
    """What a CPU tried would be handed out as measured, and never be measured; or be lost for want of git."""
    monkeypatch.setattr(archive.shutil, "which", lambda _: None)
    assert archive.main([str(tmp_path), "ops", "--tiny"]) == 0
    (line,) = (tmp_path / "trial" / "archive" / "README.md").read_text().splitlines()[2:]
    assert "| CPU trial |" in line
    assert "commit unknown" in line
    assert archive.main([str(tmp_path), "ops"]) == 0
    assert (tmp_path / "ops.ran").read_text() == "H100 80GB HBM3\n"


@pytest.mark.parametrize("words", [[], ["FOLDER", "opps", "--tiny"], ["--tinny"]])
def test_a_wrong_word_makes_no_archive(archive, words, tmp_path, monkeypatch, capsys):
    """A misspelt part would be left out of the archive, or an option be taken for the folder."""
    monkeypatch.chdir(tmp_path)
    assert archive.main(words) == 2
    assert "parts: verify ops keys" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.mpi
def test_every_part_of_the_script_runs(tmp_path):
    """Minutes of a GPU would be spent on a misspelt option, or on records that are kept nowhere."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the script's python3 is this one
    done = subprocess.run(
        ["bash", "tests/gpu/decode.sh", tmp_path, "ops", "keys", "8b", "long", "linear", "tp", "company", "grid"],
        cwd=ROOT, env={**os.environ, "TINY": "1", "PATH": path}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    for name, rows in (
        ("decode_h200-1", 15),
        ("decode_long_h200-1", 4),
        ("linear_h200-1", 5),
        ("decode_tp_h200-1", 2),
        ("decode_tp_h200-2", 2),
    ):
        with (tmp_path / f"{name}.csv").open() as file:
            records = list(csv.DictReader(file))
        assert [r["status"] for r in records] == ["ok"] * rows, name
    assert "ok" in (tmp_path / "ops.csv").read_text()
    blocks = list(map(json.loads, (tmp_path / "company.jsonl").read_text().splitlines()))
    assert [len(block["ranks"]) for block in blocks] == [2] * 7
    assert all(min(rank["ms"]) > 0 for block in blocks for rank in block["ranks"])
