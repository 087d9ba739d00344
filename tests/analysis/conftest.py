"""Records that look like a real sweep's, made from seeded noise: only the tests know them."""

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.cell import Cell, Spec
from lacuna.results.frame import to_frame
from lacuna.results.record import Record

RECORDS = Path(__file__).parent / "records"
TASKS = {
    "perplexity": ("perplexity", "lower"),
    "needle": ("accuracy", "higher"),
    "decode_time": ("decode_ms_median", "lower"),
    "pca": (None, None),
}
BUDGETS = (0.5, 0.25, 0.125)
METHODS = [
    ("full", {}, 1.0),
    *(("topk", {"k": k}, k) for k in BUDGETS),
    *(("loki", {"k": k, "d": 0.25, "basis": {"text": "prose"}}, k) for k in BUDGETS),
    *(("streaming_llm", {"window": k, "sinks": 4}, k) for k in BUDGETS),
]
LOSS = {"full": 0.0, "topk": 0.002, "loki": 0.02, "streaming_llm": 0.12}


@pytest.fixture(autouse=True, scope="module")
def task_files(tmp_path_factory):
    """Task files that say what the real ones do, so that these tests do not depend on them."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plugins.FOLDERS, "tasks", str(folder))
        plugins.describe.cache_clear()
        yield
    plugins.describe.cache_clear()


def write_tasks(folder):
    for name, (metric, better) in TASKS.items():
        lines = [f'headline: ClassVar[str] = "{metric}"', f'better: ClassVar[str] = "{better}"'] if metric else ["pass"]
        body = "\n    ".join(['"""A task."""', *lines])
        (folder / f"{name}.py").write_text(f"class Task:\n    {body}\n")


def rng(*parts):
    return np.random.default_rng(list(json.dumps(parts, sort_keys=True).encode()))


def ledger(density, tokens=512, rows=800):
    dense = 2.0 * rows * 1024
    phase = {"rows_visible_mean": rows, "tokens": tokens, "bytes_dense_per_token": dense}
    read = density * dense + (0.04 * dense if density < 1 else 0)
    decode = {
        **phase,
        "density": density,
        "rows_attended_mean": rows * density,
        "rows_kept_mean": rows,
        "bytes_read_per_token": read,
    }
    return {"decode": decode, "bytes_held": dense * 1.1, "bytes_held_dense": dense, "layers": [{"density": density}]}


def provenance(**changes):
    packages = {"torch": "2.13.0", "transformers": "5.10.1"}
    base = {"git_revision": "0123abcd", "git_dirty": False, "packages": packages, "host": "node1", "cpu": "EPYC"}
    return {**base, "gpu": None, "ranks": 2, "command": "mpirun -np 2 lacuna run demo.yaml", "slurm": {}, **changes}


def cell(method="full", args=None, task="perplexity", task_args=None, **changes):
    model = Spec("pocket", digest="abc")
    return Cell(model, Spec(method, args=args or {}), Spec(task, args=task_args or {}), **{"ranks": 2, **changes})


def record(asked, metrics, samples, density=1.0, **changes):
    common = {"provenance": provenance(), "started": "2026-01-02T03:04:05Z", "seconds": 3.5}
    return Record(asked, "ok", metrics=metrics, samples=samples, ledger=ledger(density), **{**common, **changes})


def failed(asked, status="oom", reason="out of memory: 3.1 GiB asked, 2.0 GiB free"):
    return Record(asked, status, reason=reason, trace="Traceback ...", provenance=provenance())


def perplexity(method, args, density, windows=24, **changes):
    base = rng("window").normal(2.4, 0.2, windows)
    extra = rng(method, args).normal(
        LOSS[method] * (1 / density - 1) ** 0.7 if density < 1 else 0, 0.004 if density < 1 else 0, windows
    )
    samples = [{"window": i, "nll_nats": float(v) * 256, "tokens": 256} for i, v in enumerate(base + extra)]
    nll = sum(s["nll_nats"] for s in samples) / sum(s["tokens"] for s in samples)
    metrics = {"perplexity": math.exp(nll), "nll_nats_per_token": nll, "tokens": 256 * windows}
    return record(cell(method, args, "perplexity", {"text": "prose"}, **changes), metrics, samples, density)


def needle(method, args, density, length, depths=5, repeats=4, **changes):
    draw, samples = rng(method, args, length), []
    for depth in np.linspace(0, 1, depths):
        kept = {
            "full": 0.97,
            "topk": 0.95,
            "loki": 0.9 - 0.2 * (1 - density),
            "streaming_llm": float(depth > 1 - density),
        }[method]
        for repeat in range(repeats):
            score = int(draw.random() < kept)
            samples.append(
                {
                    "length": length,
                    "depth": float(depth),
                    "repeat": repeat,
                    "score": score,
                    "answer": "7",
                    "reply": "<7>",
                }
            )
    metrics = {"accuracy": float(np.mean([s["score"] for s in samples])), "needles": len(samples)}
    return record(
        cell(method, args, "needle", {"length": length, "depths": depths}, **changes), metrics, samples, density
    )


def decode_time(method, args, density, prompt=512, steps=64, **changes):
    middle = (2.0 + prompt / 256) * {"full": 1.0, "topk": 1.3, "loki": 1.1, "streaming_llm": 0.6}.get(method, 0.9)
    ms = middle * rng(method, args, prompt).lognormal(0, 0.06, steps)
    samples = [{"phase": "prefill", "ms": 40.0}, *({"phase": "decode", "ms": float(v)} for v in ms)]
    metrics = {"ttft_ms": 40.0, "decode_ms_median": float(np.median(ms)), "decode_tok_s": 1000 / float(np.median(ms))}
    return record(
        cell(
            method,
            args,
            "decode_time",
            {"batch": 1, "prompt": prompt, "steps": steps, "warmup": 4, "prefills": 3, "corpus": "prose"},
            **changes,
        ),
        metrics,
        samples,
        density,
    )


def sweep(prompts=(512,), lengths=(256, 512, 1024), **changes):
    """A demo sweep's records: 10 methods x 3 tasks and a calibration."""
    found = [record(cell("full", {}, "pca", {"text": "prose"}, **changes), {}, [])]
    for method, args, density in METHODS:
        found.append(perplexity(method, args, density, **changes))
        found += [needle(method, args, density, n, **changes) for n in lengths]
        found += [decode_time(method, args, density, n, **changes) for n in prompts]
    return found


def example(name):
    """A file of records/: a figure that needs more brings its own, and no test is edited."""
    spec = importlib.util.spec_from_file_location(f"records_{name}", RECORDS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def examples():
    """Records of all of them."""
    make = SimpleNamespace(**{k: v for k, v in globals().items() if callable(v)})
    return [r for path in sorted(RECORDS.glob("*.py")) for r in example(path.stem).records(make)]


def draw(name, records):
    """A figure of records."""
    return plugins.load("figures", name).draw(Study(to_frame(records)))


@pytest.fixture(scope="module")
def demo():
    """The table of a whole sweep that went well."""
    return to_frame(sweep())


@pytest.fixture(scope="module")
def broken():
    """The same with a cell out of memory, one that is invalid, and a dirty tree on a second host."""
    records = sweep()
    records[2] = failed(records[2].cell)
    records[-1] = failed(records[-1].cell, "invalid", "the method should leave gaps <but> attended 100% & more")
    last = records[8]
    records[8] = Record(**{**vars(last), "provenance": provenance(host="node2", git_dirty=True)})
    return to_frame(records)


@pytest.fixture(scope="module")
def make():
    """The functions of this file."""
    return SimpleNamespace(**{k: v for k, v in globals().items() if callable(v)})
