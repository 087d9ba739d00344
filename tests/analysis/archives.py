"""Synthetic archives of any size, written by columns: what a large sweep's Parquet file looks like.

python tests/analysis/archives.py FILE.parquet 1000000
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

METHODS = ("topk", "loki", "streaming_llm", "h2o", "snapkv", "pyramidkv", "tova", "keydiff", "l2norm", "quest", "sparq")
ARGUMENT = {"streaming_llm": "window", "quest": "pages"}
BLOCK = 20_000
WINDOWS, NEEDLES, STEPS = 16, 20, 32


@dataclass(frozen=True)
class Grid:
    """How many of each: the product is the number of records."""

    models: int
    settings: int
    methods: int
    lengths: int
    prompts: int

    @property
    def records(self):
        """Cells of the whole grid: needles at each length, times at each prompt, perplexity twice."""
        return self.models * self.settings * self.methods * (self.lengths + self.prompts + 2)


GRIDS = {10_000: Grid(10, 1, 20, 40, 8), 1_000_000: Grid(50, 4, 100, 40, 8)}


def write(path, grid, seed=0):
    """Write the archive to a Parquet file, a block of records at a time."""
    random, first, writer = np.random.default_rng(seed), 0, None
    tasks = _tasks(grid)
    every = [(m, s, k) for m in range(grid.models) for s in range(grid.settings) for k in range(grid.methods)]
    per_block = max(1, BLOCK // len(tasks))
    for start in range(0, len(every), per_block):
        rows = [(*who, t) for who in every[start : start + per_block] for t in range(len(tasks))]
        table = pa.table(_columns(rows, tasks, random, first))
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
        first += len(rows)
    writer.close()


def _tasks(grid):
    needle = {"depths": 5, "repeats": 4, "haystack": "prose"}
    timing = {"batch": 1, "steps": STEPS, "warmup": 4, "prefills": 3, "corpus": "prose"}
    texts = [("perplexity", {"corpus": c, "window": 1024, "windows": WINDOWS}) for c in ("prose", "calibration")]
    needles = [("needle", {**needle, "length": 256 * (i + 1)}) for i in range(grid.lengths)]
    return [*texts, *needles, *(("decode_time", {**timing, "prompt": 512 * (i + 1)}) for i in range(grid.prompts))]


def _method(index):
    if index == 0:
        return "full", {}
    name = METHODS[index % len(METHODS)]
    share = round(0.9 ** (1 + index // len(METHODS)), 4)
    return name, {ARGUMENT.get(name, "k"): share}


def _columns(rows, tasks, random, first):
    models, settings, methods, which = (np.array(column) for column in zip(*rows, strict=True))
    n, names = len(rows), [tasks[t][0] for t in which]
    known = [_method(i) for i in range(max(methods) + 1)]
    density = np.array([1.0 if not args else next(iter(args.values())) for _, args in known])[methods]
    failed = (random.random(n) < 0.01) & (methods > 0)
    samples, metrics = _samples(names, density, random)
    specs = [_spec(r, known, tasks) for r in rows]
    texts = {
        "key": [f"{first + i:020x}" for i in range(n)],
        "status": np.where(failed, "oom", "ok").tolist(),
        "reason": np.where(failed, "out of memory: 3.1 GiB asked, 2.0 GiB free", "").tolist(),
        "model": [f"model{m}" for m in models],
        "method": [known[m][0] for m in methods],
        "method_label": [" ".join([known[m][0], *(f"{k}={v}" for k, v in known[m][1].items())]) for m in methods],
        "task": names,
        "dtype": np.where(settings % 2, "bfloat16", "float32").tolist(),
        "device": ["cuda"] * n,
        "ranks": (1 + settings // 2).astype(np.int64),
        "prefill": ["dense"] * n,
        "query_aware": np.zeros(n, bool),
        "seed": np.zeros(n, np.int64),
        **_ledger(density, failed),
        "host": ["node1"] * n,
        "gpu": ["GPU"] * n,
        "started": ["2026-01-02T03:04:05Z"] * n,
        "seconds": random.random(n),
        "method.k": np.where(density < 1, density, np.nan),
        "task.length": np.array([float(tasks[t][1].get("length", np.nan)) for t in which]),
        "task.prompt": np.array([float(tasks[t][1].get("prompt", np.nan)) for t in which]),
        **{name: np.where(failed, np.nan, column) for name, column in metrics.items()},
        "trace": np.where(failed, "Traceback (most recent call last): ...", "").tolist(),
        "cell_json": [json.dumps(s, separators=(",", ":")) for s in specs],
        "samples_json": ["[]" if bad else text for text, bad in zip(samples, failed, strict=True)],
        "ledger_json": [_ledger_text(d) for d in density],
        "provenance_json": [_provenance(i // 200) for i in range(first, first + n)],
        "artifact_json": ["null"] * n,
    }
    return texts


def _spec(row, known, tasks):
    model, setting, method, task = row
    one = {"version": 1, "digest": "", "source": ""}
    return {
        "model": {"name": f"model{model}", **one, "args": {}, "digest": f"{model:016x}", "source": f"models/m{model}"},
        "method": {"name": known[method][0], **one, "args": known[method][1]},
        "task": {"name": tasks[task][0], **one, "args": tasks[task][1]},
        "dtype": "bfloat16" if setting % 2 else "float32",
        "device": "cuda",
        "ranks": 1 + setting // 2,
        "prefill": "dense",
        "query_aware": False,
        "seed": 0,
        "needs": [],
    }


def _samples(names, density, random):
    n = len(names)
    nll = random.normal(2.4, 0.2, (n, WINDOWS)) + 0.02 * (1 / density - 1)[:, None]
    hits = random.random((n, NEEDLES)) < 0.95 * density[:, None] ** 0.1
    ms = 4 * random.lognormal(0, 0.06, (n, STEPS)) * (0.5 + 0.5 * density[:, None])
    texts = []
    for i, name in enumerate(names):
        if name == "perplexity":
            parts = [f'{{"window":{w},"nll_nats":{v * 1023:.10f},"tokens":1023}}' for w, v in enumerate(nll[i])]
        elif name == "needle":
            parts = [
                f'{{"length":256,"depth":{j % 5 / 4},"repeat":{j // 5},"score":{int(h)},"answer":"49152","reply":" 49152."}}'
                for j, h in enumerate(hits[i])
            ]
        else:
            parts = ['{"phase":"prefill","ms":40.5}', *(f'{{"phase":"decode","ms":{v:.8f}}}' for v in ms[i])]
        texts.append("[" + ",".join(parts) + "]")
    task = np.array(names)
    return texts, {
        "accuracy": np.where(task == "needle", hits.mean(1), np.nan),
        "decode_ms_median": np.where(task == "decode_time", np.median(ms, 1), np.nan),
        "perplexity": np.where(task == "perplexity", np.exp(nll.mean(1)), np.nan),
    }


def _ledger(density, failed):
    dense = 1638400.0
    columns = {
        "density": density,
        "bytes_read_per_token": density * dense,
        "bytes_dense_per_token": np.full(len(density), dense),
        "bytes_held": np.full(len(density), dense),
        "bytes_held_dense": np.full(len(density), dense),
    }
    return {name: np.where(failed, np.nan, column) for name, column in columns.items()}


def _ledger_text(density):
    phase = f'{{"tokens":512,"density":{density},"rows_visible_mean":800.0,"rows_attended_mean":{800 * density},"rows_kept_mean":800.0,"bytes_read_per_token":{1638400 * density},"bytes_dense_per_token":1638400.0}}'
    layers = ",".join([phase] * 8)
    return f'{{"prefill":{{"tokens":0}},"decode":{phase},"bytes_held":1638400,"bytes_held_dense":1638400,"layers":[{layers}]}}'


def _provenance(job):
    packages = {"torch": "2.13.0", "transformers": "5.10.1", "numpy": "2.4.6", "triton": "3.6.0"}
    where = {"host": "node1", "os": "Linux-6.18", "cpu": "EPYC", "gpu": "GPU", "gpu_gib": 140, "driver": "580.1"}
    slurm = {"SLURM_JOB_ID": str(job)}
    return json.dumps({"git_revision": "0123abcd", "git_dirty": False, "packages": packages, **where, "slurm": slurm})


if __name__ == "__main__":
    write(Path(sys.argv[1]), GRIDS[int(sys.argv[2])])
