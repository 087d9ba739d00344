"""What an evaluation finds depends neither on how many texts share a batch nor on how many ranks share the model."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from batch_cap import capped

from lacuna.cli import main
from lacuna.harness.lm import Session
from lacuna.results.store import Store

sys.path.insert(0, str(Path(__file__).parent.parent))
from mpirun import mpirun

HERE = Path(__file__).parent
SWEEP = """
model: pocket
method: {METHOD}
task:
  - needle: {length: 128, depths: [0.0, 0.5], repeats: 4, keys: 2}
  - needle: {length: 128, depths: [0.5], repeats: 2, keys: 2, asked: 2}
  - passkey: {length: 96, samples: 8}
  - kv: {length: 128, samples: 8}
  - ruler: {kind: vt, length: 256, samples: 8}
  - longbench: {task: hotpotqa, data: long.jsonl, length: 96}
  - perplexity: {window: 48, windows: 8, prompt: 20}
  - lm_eval: {file: choice.yaml, data: rows.jsonl, shots: 0}
  - lm_eval: {file: write.yaml, data: rows.jsonl, shots: 0}
  - lm_eval: {file: draw.yaml, data: rows.jsonl, shots: 0}
  - lm_eval: {file: roll.yaml, data: rows.jsonl, shots: 0}
  - humaneval: {data: code.jsonl, draws: 4, temperature: 1.0, new: 6}
  - mbpp: {data: mbpp.jsonl, shots: 0, new: 4}
"""
TASK = """
task: NAME
dataset_path: json
test_split: test
"""
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{gold}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "write": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "draw": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: true, temperature: 0.9}
metric_list: [{metric: exact_match}]
""",
    "roll": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{choices[0]}}"
metric_list: [{metric: word_perplexity}]
""",
}
SHARE = ("humaneval", "lm_eval")
NAMES = ("the king", "an old man", "nobody at all", "she", "the master of the house", "it", "we", "a stranger", "he")


@pytest.fixture
def sweep(tmp_path):
    """The sweep and the files that it names."""
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(TASK.replace("NAME", name) + text)
    rows = {
        "rows": [{"question": f"Who is {n}, who came {i} times?", "choices": ["Yes, him", "No"], "gold": i % 2} for i, n in enumerate(NAMES)],
        "long": [{"_id": n, "context": f"Then came {n}. " * (3 + 4 * i), "input": "Who is it?", "answers": ["him"]} for i, n in enumerate(NAMES)],
        "code": [{"task_id": f"c{i}", "prompt": f"def f(x):\n    # {n}\n", "test": "def check(f): pass", "entry_point": "f"} for i, n in enumerate(NAMES[:2])],
        "mbpp": [{"task_id": 10 + i, "text": f"Find {n}.", "test_list": ["assert f()"], "code": ""} for i, n in enumerate(NAMES)],
    }  # fmt: skip
    for name, listed in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))

    def write(method):
        path = tmp_path / "s.yaml"
        path.write_text(SWEEP.replace("{METHOD}", method))
        return str(path)

    return write


def records(store):
    """What a store holds, by key; all is well."""
    found = {r.key: r for r in Store(store).records()}
    assert {r.status for r in found.values()} == {"ok"}, {r.reason for r in found.values()}
    return found


def by_task(found):
    """Records without the number of ranks, which is part of the key."""
    return {json.dumps([r.cell.task.name, r.cell.task.args], sort_keys=True): r for r in found.values()}


def nearly(value):
    """Numbers to rounding, all else as it is."""
    numbers = value if isinstance(value, list) else [value]
    return pytest.approx(value, rel=1e-4, abs=1e-6) if all(isinstance(n, int | float) for n in numbers) else value


def hold_alike(one, other):
    """All that was measured, but the time that it took."""
    assert one.keys() == other.keys()
    for task, a in one.items():
        b = other[task]
        assert len(a.samples) == len(b.samples) >= 2
        for mine, theirs in zip(a.samples, b.samples, strict=True):
            for name in mine.keys() - {"answer_s"}:
                assert mine[name] == nearly(theirs[name]), (task, name)
        for name in a.metrics.keys() - {"answer_s_mean"}:
            assert a.metrics[name] == pytest.approx(b.metrics[name], rel=1e-4), (task, name)
        # a context that choices or draws share is prefilled once in a batch, so how often depends on who is in it
        for phase in ("prefill", "decode") if a.cell.task.name not in SHARE else ("decode",):
            assert a.ledger[phase]["tokens"] == b.ledger[phase]["tokens"], task
            assert a.ledger[phase].get("density", 0) == pytest.approx(b.ledger[phase].get("density", 0), rel=1e-6), task


def largest(seen, found):
    """The largest batch of each task; a text of several turns is alone."""
    sizes = {json.dumps([r.cell.task.name, r.cell.task.args]): max(seen[key]) for key, r in found.items()}
    return {task: n for task, n in sizes.items() if '"asked": 2' not in task}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", ["{topk: {rows: 8}}", "{h2o: {rows: 12}}"])
def test_results_are_the_same_in_batches_of_one_three_and_eight(sweep, tmp_path, monkeypatch, method):
    """A score that changes with the batch size cannot be compared with anybody's, one's own among them."""
    path, found = sweep(method), {}
    for most in (1, 3, 8):
        seen = {}
        monkeypatch.setattr(Session, "each", capped(most, seen))
        assert main(["run", path, "--store", str(tmp_path / f"store{most}")]) == 0
        here = records(tmp_path / f"store{most}")
        sizes = largest(seen, here)  # questions of one length share a batch
        assert max(sizes.values()) == most
        assert {task: n for task, n in sizes.items() if n < min(most, 2)} == {}
        found[most] = by_task(here)
    assert len(found[1]) == 13
    hold_alike(found[1], found[3])
    hold_alike(found[1], found[8])


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun")
def test_two_ranks_measure_what_one_does_in_every_batch(sweep, tmp_path, monkeypatch):
    """Scores that change with the number of GPUs are not of the method."""
    path = sweep("{topk: {rows: 8}}")
    monkeypatch.setattr(Session, "each", capped(8))
    assert main(["run", path, "--store", str(tmp_path / "one")]) == 0
    one = by_task(records(tmp_path / "one"))
    for most in (1, 3, 8):
        two = tmp_path / f"two{most}"
        mpirun(2, HERE / "batch_cap.py", most, "run", path, "--store", two, "--set", "ranks=2", timeout=900)
        hold_alike(one, by_task(records(two)))
