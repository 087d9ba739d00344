"""A task of lm-eval on real data that is killed outright ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lacuna.results.store import Store

SWEEP = """
model: pocket
method: {{topk: {{rows: 16}}}}
task:
  lm_eval: {{{task}}}
"""
CHOOSE = "task: arc_easy, data: {shared}/arc/arc_easy.jsonl.gz, shots: 0, limit: 24, metric: acc_norm"
WRITE = "file: {here}/short.yaml, data: {shared}/gsm8k/test.jsonl.gz, shots: 1, shots_data: {shared}/gsm8k/train.jsonl.gz, limit: 8"
SHORT = """
task: short_gsm8k
dataset_path: json
test_split: test
fewshot_split: train
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], max_gen_toks: 16, do_sample: true, temperature: 0.7}
metric_list: [{metric: exact_match}]
"""
WORKER = Path(__file__).parent / "batch_cap.py"


def command(sweep, store):
    """The sweep in batches of two."""
    return [sys.executable, str(WORKER), "2", "run", str(sweep), "--store", str(store.root)]


def kill_after(lines, sweep, store):
    """Start it, and kill -9 once so many batches were written down; returns the samples that were done."""
    process = subprocess.Popen(command(sweep, store), stdout=subprocess.DEVNULL)
    end, found = time.monotonic() + 300, []
    while len(found) < lines:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < end, "nothing was written down"
        time.sleep(0.02)
        found = [n for path in store.root.glob("unfinished/**/*.jsonl") for n in path.read_bytes().splitlines()]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(store.records())
    return len(found)


def measured(record):
    """All but what the clock says."""
    samples = [{k: v for k, v in s.items() if k != "answer_s"} for s in record.samples]
    return samples, {k: v for k, v in record.metrics.items() if k != "answer_s_mean"}, record.ledger


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", [CHOOSE, WRITE], ids=["loglikelihood", "generate_until"])
def test_a_kill_inside_a_task_changes_nothing(tmp_path, shared, task):
    """Hours of MMLU would be lost to a time limit, or some of its questions counted twice."""
    (tmp_path / "short.yaml").write_text(SHORT)
    sweep, whole, cut = tmp_path / "s.yaml", Store(tmp_path / "whole"), Store(tmp_path / "cut")
    sweep.write_text(SWEEP.format(task=task.format(shared=shared, here=tmp_path)))
    subprocess.run(command(sweep, whole), check=True)
    done = kill_after(2, sweep, cut)
    said = subprocess.run(command(sweep, cut), check=True, capture_output=True, text=True).stdout
    assert f"goes on after {2 * done} samples" in said
    (one,), (two,) = whole.records(), cut.records()
    assert (one.status, len(one.samples)) == ("ok", 24 if task == CHOOSE else 8)
    assert measured(one) == measured(two)
