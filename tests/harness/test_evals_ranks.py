"""Evaluations on two ranks are those of one."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from lacuna.cli import main
from lacuna.results.store import Store

sys.path.insert(0, str(Path(__file__).parent.parent))
from mpirun import mpirun

SWEEP = """
model: pocket
method: [full, {topk: {rows: 8}}]
task:
  - needle: {length: 256, depths: [0.0, 0.5], repeats: 1, keys: 2, asked: 2}
  - perplexity: {window: 96, windows: 2, prompt: 40}
  - lm_eval: {file: choice.yaml, data: rows.jsonl, shots: 0}
  - humaneval: {data: code.jsonl, draws: 2, temperature: 1.0, new: 6, unsafe: true}
"""
CHOICE = """
task: colours
dataset_path: json
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{gold}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun")
def test_two_ranks_measure_what_one_does(tmp_path):
    """Scores that change with the number of GPUs are not of the method."""
    (tmp_path / "s.yaml").write_text(SWEEP)
    (tmp_path / "choice.yaml").write_text(CHOICE)
    rows = [
        {"question": f"Who is number {i}?", "choices": ["the king", "nobody at all"], "gold": i % 2} for i in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code = {
        "task_id": "a",
        "prompt": "def f(x):\n    # one, two, three, four, five, six\n",
        "test": "def check(f): pass",
        "entry_point": "f",
    }
    (tmp_path / "code.jsonl").write_text(json.dumps(code) + "\n")
    sweep, found = str(tmp_path / "s.yaml"), []
    assert main(["run", sweep, "--store", str(tmp_path / "one")]) == 0
    mpirun(2, Path(__file__).parent / "cli_worker.py", "run", sweep, "--store", tmp_path / "two", "--set", "ranks=2")
    for name in ("one", "two"):
        records = list(Store(tmp_path / name).records())
        assert [r.status for r in records] == ["ok"] * 8
        found.append({(r.cell.method.name, r.cell.task.name): r for r in records})
    for key, one in found[0].items():
        two = found[1][key]
        assert len(one.samples) == len(two.samples) >= 2
        for a, b in zip(one.samples, two.samples, strict=True):
            for name in a.keys() - {"answer_s"}:
                assert a[name] == (pytest.approx(b[name], rel=1e-4) if isinstance(b[name], float) else b[name]), name
        for phase in ("prefill", "decode"):
            assert one.ledger[phase]["tokens"] == two.ledger[phase]["tokens"]
            assert one.ledger[phase].get("density") == pytest.approx(two.ledger[phase].get("density"), rel=1e-6)
