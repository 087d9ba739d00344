"""Commands that only look answer at once, and leave torch alone."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lacuna.jobs.plan import plan
from lacuna.jobs.sweep import read
from lacuna.results.record import Record
from lacuna.results.store import Store

HEAVY = ("torch", "transformers", "triton", "axonn", "mpi4py", "submitit")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with a sweep of one cell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LACUNA_STORE", raising=False)
    Path("tiny.yaml").write_text("model: pocket\nmethod: full\ntask: {perplexity: {window: 64, windows: 1}}\n")
    return tmp_path


def console(*argv, cwd):
    """Run a command in a process of its own; gives what it printed and which heavy modules it imported."""
    script = (
        "import sys; from lacuna.cli import main; code = main(sys.argv[1:])\n"
        f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules]); sys.exit(code)"
    )
    path = os.pathsep.join([p for p in sys.path if p])
    done = subprocess.run(
        [sys.executable, "-c", script, *argv], cwd=cwd, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "argv",
    ["list methods --json", "plan tiny.yaml --json", "status tiny.yaml", "why tiny.yaml", "collect tiny.yaml -o a.csv", "report tiny.yaml -o rep", "table tiny.yaml --where task=perplexity"],
)  # fmt: skip
def test_torch_is_left_alone(here, argv):
    """Looking at a sweep would take the seconds, and the gigabytes, of torch."""
    store = Store("store")
    for cell in read(Path("tiny.yaml"), store).cells:
        samples = [{"window": 0, "nll_nats": 63.0, "tokens": 63}]
        store.put(Record(cell, "ok", metrics={"perplexity": 2.7, "nll_nats_per_token": 1.0}, samples=samples))
    assert console(*argv.split(), cwd=here).endswith("HEAVY []\n")


def quickest(*argv, cwd):
    """What a command printed, and the least CPU time of three tries: other work of the machine is not its own."""
    took = []
    for _ in range(3):
        start = spent()
        out = console(*argv, cwd=cwd)
        took.append(spent() - start)
    return out, min(took)


def spent():
    """CPU seconds of all processes that this one started and saw end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_list_answers_at_once(here, pace):
    """Completion and curiosity would have to wait."""
    assert quickest("list", "methods", cwd=here)[1] < 0.5 * pace


def test_status_of_ten_thousand_cells(here, pace):
    """A large sweep could not be watched."""
    numbers = list(range(1, 11))
    Path("big.yaml").write_text(
        f"model: pocket\nmethod: {{loki: {{rows: {numbers}, d: {numbers}}}}}\ntask: {{needle: {{length: {[128 * n for n in numbers]}}}}}\nseed: {numbers}\n"
    )
    store = Store("store")
    sweep = read(Path("big.yaml"), store)
    for cell in plan(sweep, store).cells:  # not Store.put, whose fsync would take a minute
        path = store._path("records", cell.key, ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"key": cell.key, "status": "ok", "reason": "", "sha256": ""})[:-1] + ',\n"record":{}}\n'
        )
    out, took = quickest("status", "big.yaml", cwd=here)
    assert "10010" in out
    assert took < 2 * pace
