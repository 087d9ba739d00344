"""The script that verifies and times the kernels for many rows on a GPU, tried where there is none."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
def test_the_script_of_the_gpu_runs_in_tiny(tmp_path):
    """Broken: minutes on a GPU end at a typing error, or a line is called right that nobody verified or timed."""
    command = [ROOT / "tests" / "gpu" / "prefill.sh", tmp_path, "columns", "quick", "--tiny"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the script's python3 is this one
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    columns = {"attention", "column_sums", "window_votes"}
    of_landmark = {"attention_gradient", "landmark_attention", "landmark_gradient", "landmark_retrieve"}
    of_scoring = {"chosen_prefill", "held_prefill", "evict_walk", "sparq_rows"}
    for part, ops in (
        ("columns", columns),
        ("quick", columns | of_landmark | of_scoring | {"kth_score", "threshold_prefill", "linear_prefill"}),
    ):
        with (tmp_path / f"prefill_{part}.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert {line["op"] for line in lines} == ops
        assert {line["status"] for line in lines} == {"ok"}
        assert {line["median_ms"] for line in lines} == {""}
