"""How long each method takes to score one long text, over dense, on a model shaped like pocket.

    python3 tests/gpu/scoring.py FOLDER [METHOD ...] [--tiny]

An eighth of the text is a dense prompt, after which methods that compress prompts do so; all other rows are rows that
the method acts on. Weights are random, and so are bases; thresholds are calibrated on another text as long. Seconds and
memory are what is measured, and the density says how much a method read meanwhile. Lines come to FOLDER/scoring.csv as they are known.
"""

import csv
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from conftest_models import calibrations, make_method, make_model, tokens
from turns import run_in_turns

from lacuna.harness.lm import LM, Session
from lacuna.harness.ranks import Ranks
from lacuna.harness.tasks.thresholds import Thresholds
from lacuna.harness.world import World
from lacuna.models.bind import bind
from lacuna.models.ledger import summary
from lacuna.models.shard import Shard
from lacuna.results import plugins

TINY = "--tiny" in sys.argv
TOKENS = 96 if TINY else 32768
# Seconds for what is done side by side, and for the turn of one method.
PREPARE_S, TURN_S = (300, 120) if TINY else (120, 25)
LAYERS, HEADS, GROUPS = (2, 6, 3) if TINY else (8, 6, 3)
SHAPE = {
    "vocab_size": 256 if TINY else 4096,
    "hidden_size": 64 * HEADS,
    "intermediate_size": 128 if TINY else 1024,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": TOKENS,
    "lacuna_landmark": {"token": 0, "control": 0, "block": 50, "length": 512, "gated": False},
}
# Budgets of those whose share of a text this short would not hold their state or their blocks.
OTHERWISE = {"ratchetkv": {"rows": 512}, "landmark": {}, "ntk": {"prefix": 16 if TINY else 64}}


@dataclass(frozen=True)
class Line:
    """One method."""

    method: str
    tokens: int
    device: str
    seconds: float
    peak_mib: float
    density: float


def arguments(name):
    """A quarter, where the method has a budget of that kind."""
    fields = plugins.describe("methods", name).fields
    return OTHERWISE.get(name, {"keep": 0.25} if any(field.name == "keep" for field in fields) else {})


class Drawn(Session):
    """Reads random tokens, whatever the corpus."""

    def encode(self, text):
        """As many as a window has, another draw for another text."""
        return tokens(1, TOKENS, seed=len(text))[0].tolist()


def session_of(kind, model, method, binding):
    """A session on this process alone."""
    return kind(
        LM(model, None, Shard(kv_heads_real=GROUPS), World(Ranks(0, 1), model.device.type)), method, None, binding
    )


def calibrate(model, method, folder, files):
    """Replace the thresholds by those of a window as long as the text, as a user would calibrate them."""
    shared = {name: getattr(method, name) for name in ("keep", "rows", "bytes", "heads", "placement", "d")
              if hasattr(method, name)}  # fmt: skip
    basis = {} if "d" in shared else None
    task = Thresholds(**shared, basis=basis, tokens=max(256, TOKENS), window=TOKENS)
    full = plugins.load("methods", "full")()
    with bind(model, full, artifacts=files) as binding:
        made = task.run(session_of(Drawn, model, full, binding)).artifact
    files["thresholds"] = folder / "thresholds.safetensors"
    files["thresholds"].write_bytes(made)


def score(model, method, files, ids):
    """Seconds, peak memory and density of one text."""
    with bind(model, method, artifacts=files) as binding:
        session = session_of(Session, model, method, binding)
        begun = time.perf_counter()
        logs = session.score(ids, ids.shape[1] // 8)
        finite = bool(logs.isfinite().all())  # waits for the device
        seconds = time.perf_counter() - begun
        if not finite:
            raise ValueError("log-probabilities are not finite")
        return seconds, summary([binding.ledger.sums()])["decode"]["density"]


def steps(name, folder):
    """What the process of a method does: all that is compiled is compiled before its turn."""
    device = "cpu" if TINY else "cuda"
    model = make_model(**SHAPE).to(device, torch.float32 if TINY else torch.bfloat16)
    own = Path(mkdtemp())  # not in the folder of the results, which is sent on: bases and thresholds are megabytes
    files = calibrations(own, GROUPS, 64, LAYERS, HEADS)
    method, ids = make_method(name, arguments(name)), tokens(1, TOKENS).to(device)
    if hasattr(method, "thresholds"):
        calibrate(model, method, own, files)
    score(model, method, files, ids[:, : TOKENS // 8])
    yield
    for _ in range(3):  # what only a long text compiles is no time of the second and third
        if not TINY:
            torch.cuda.reset_peak_memory_stats()
        seconds, density = score(model, method, files, ids)
        peak = 0.0 if TINY else torch.cuda.max_memory_allocated() / 2**20
        card = "cpu" if TINY else torch.cuda.get_device_name()
        put(folder, Line(name, TOKENS, card, seconds, peak, density))


def put(folder, line):
    """Add a line; its process may be ended before the next."""
    with (folder / "scoring.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(asdict(line).values())


def table(folder, wrong):
    """Print the best time of each method over that of dense."""
    with (folder / "scoring.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    best = {}
    for line in lines:
        best[line["method"]] = min(line, best.get(line["method"], line), key=lambda one: float(one["seconds"]))
    dense = float(best["full"]["seconds"]) if "full" in best else float("nan")
    for name, line in sorted(best.items(), key=lambda pair: float(pair[1]["seconds"])):
        print(f"{name:18} {float(line['seconds']):8.3f} s {float(line['seconds']) / dense:8.2f} x dense "
              f"{float(line['peak_mib']):8.0f} MiB  density {float(line['density']):.3f}  {wrong.get(name, '')}")  # fmt: skip
    for name in wrong.keys() - best.keys():
        print(f"{name:18} {wrong[name] or 'no line'}")


def main(folder, names):
    """Score with each method in turn; whether all did."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "scoring.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(list(Line.__dataclass_fields__))
    wrong = run_in_turns(steps, names, folder, PREPARE_S, TURN_S)
    table(folder, wrong)
    return not any(wrong.values())


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--tiny"]
    every = plugins.names("methods")
    sys.exit(0 if main(Path(words[0]), words[1:] or sorted(every, key=lambda name: name != "full")) else 1)
