"""Training cells small enough for a test, run as a user would run them."""

import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file

from lacuna.harness.ranks import Ranks
from lacuna.harness.run import run_cells
from lacuna.jobs.sweep import read
from lacuna.results.store import Store

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}
ARGS = {"tokens": 6144, "lengths": [32, 64], "shares": [0.5, 0.5], "planted": [0.0, 0.0], "step_tokens": 512,
        "part_tokens": 128, "save_steps": 1, "heldout_windows": 2, "warmup": 0.1}  # fmt: skip


def write_sweep(folder, name="t", model=None, seed=0, device="cpu", dtype="float32", **changes):
    """A sweep file of one training cell."""
    for words in (SHAPE["vocab_size"], 270):
        shape = json.dumps({**SHAPE, "vocab_size": words})
        (folder / f"small{words}.json").write_text(shape, encoding="utf-8")
    sweep = {"name": name, "model": model or {"new": "small300.json"}, "method": "full", "seed": seed, "device": device,
             "dtype": dtype, "task": {"train": {**ARGS, **changes}}}  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(sweep), encoding="utf-8")
    return path


def train(folder, store, name="t", **changes):
    """Train here; the record and the store."""
    store = Store(folder / store)
    (cell,) = read(write_sweep(folder, name, **changes), store).cells
    run_cells([cell], store, Ranks(), lambda _: None)
    return store.get(cell.key), store


def start(sweep, store):
    """Train in another process, which can be killed."""
    command = [sys.executable, "-m", "lacuna", "run", str(sweep), "--store", str(store)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)


def losses(record):
    """The curve without what depends on the machine's mood."""
    return [(p["step"], p["loss"], p["text_loss"]) for p in record.samples]


def weights(store, record):
    """The trained weights."""
    return load_file(store.artifact(record.key))


def assert_close(one, two, **tolerance):
    """Equal curves and weights."""
    (record, store), (other, elsewhere) = one, two
    a, b = torch.tensor(losses(record)), torch.tensor(losses(other))
    torch.testing.assert_close(a, b, **tolerance)
    mine, theirs = weights(store, record), weights(elsewhere, other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], **tolerance)
