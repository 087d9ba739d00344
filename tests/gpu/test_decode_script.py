"""The script that a GPU machine runs, tried on a CPU: what it measures there is nothing, but every command works."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lacuna.results.plugins import ROOT


@pytest.mark.slow
@pytest.mark.mpi
def test_every_part_of_the_script_runs(tmp_path):
    """Minutes of a borrowed GPU would be spent on a misspelt option, or on records that are kept nowhere."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the script's python3 is this one
    done = subprocess.run(
        ["bash", "tests/gpu/decode.sh", tmp_path, "ops", "8b", "long", "tp", "company", "grid"],
        cwd=ROOT, env={**os.environ, "TINY": "1", "PATH": path}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    for name, rows in (
        ("decode_h200-1", 8),
        ("decode_long_h200-1", 4),
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
