"""How long each method takes to score one long text, over dense.

    python3 tests/gpu/scoring.py FOLDER [METHOD ...] [--tiny] [--shape NAME]

An eighth of the text is a dense prompt, after which methods that compress prompts do so; all other rows are rows that
the method acts on. Weights are random, and so are bases; thresholds are calibrated on another text as long. Seconds and
memory are what is measured, and the density says how much a method read meanwhile. Some processes share the methods;
all compile side by side, by a text as long, then take turns. In each turn dense and the method are timed alternately,
since what the host launches takes another time in another process; a ratio is of the medians of one process. A shorter text
comes first in each session, which makes what is made once. Lines come to FOLDER/scoring.csv as they are known.
"""

import argparse
import csv
import statistics
import sys
import time
import traceback
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
# Processes, seconds for what they do side by side, and for the turn of one.
JOBS, PREPARE_S, TURN_S = (2, 300, 120) if TINY else (16, 84, 60)
# (layers, query heads, KV heads, dims of a head, inner size of the MLP): the model that ships, and layers of Llama 3 8B.
SHAPES = {"pocket": (8, 6, 3, 64, 1024), "llama-3-8b-x4": (4, 32, 8, 128, 14336)}
# Times that dense and a method take turns: more where the host decides.
TURNS = {"pocket": 3, "llama-3-8b-x4": 1}
if TINY:
    SHAPES = {"pocket": (2, 6, 3, 16, 64), "llama-3-8b-x4": (2, 8, 2, 16, 64)}
# Budgets of those whose share of a text this short would not hold their state or their blocks.
OTHERWISE = {"ratchetkv": {"rows": 512}, "landmark": {}, "ntk": {"prefix": 16 if TINY else 64}}
# Further lines of a method, under names of their own: its arguments beside its share.
VARIANTS = {
    "linear_residual_elu": ("linear_residual", {"features": "elu"}),
    "linear_residual_favor": ("linear_residual", {"features": "favor"}),
    "linear_residual_window": ("linear_residual", {"recent": 1.0}),
    "linear_residual_window_favor": ("linear_residual", {"recent": 1.0, "features": "favor"}),
}


@dataclass(frozen=True)
class Line:
    """One method on one shape, once, after dense in the same process."""

    shape: str
    method: str
    tokens: int
    device: str
    seconds: float
    dense_seconds: float
    peak_mib: float
    density: float


def method_of(name):
    """A method of that name, or the variant of one."""
    own, more = VARIANTS.get(name, (name, {}))
    return make_method(own, {**arguments(own), **more})


def arguments(name):
    """A quarter, where the method has a budget of that kind."""
    fields = plugins.describe("methods", name).fields
    return OTHERWISE.get(name, {"keep": 0.25} if any(field.name == "keep" for field in fields) else {})


class Drawn(Session):
    """Reads random tokens, whatever the corpus."""

    def encode(self, text):
        """As many as a window has, another draw for another text."""
        return tokens(1, TOKENS, seed=len(text))[0].tolist()


def model_of(shape, device):
    """A model of random weights, whose scores deviate as much on every shape: 5.5, as where 384 dims are hidden."""
    layers, heads, groups, dim, inner = shape
    with torch.device(device):
        torch.set_default_dtype(torch.float32 if TINY else torch.bfloat16)
        model = make_model(
            vocab_size=256 if TINY else 4096, hidden_size=heads * dim, intermediate_size=inner,
            num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups,
            max_position_embeddings=TOKENS,
            lacuna_landmark={"token": 0, "control": 0, "block": 50, "length": 512, "gated": False},
        )  # fmt: skip
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight.mul_((384 / (heads * dim)) ** 0.5)
    return model


def session_of(kind, model, method, binding):
    """A session on this process alone."""
    groups = model.config.num_key_value_heads
    return kind(
        LM(model, None, Shard(kv_heads_real=groups), World(Ranks(0, 1), model.device.type)), method, None, binding
    )


def calibrated(model, method, shape):
    """Files that the method needs; thresholds are those of a window as long as the text, as a user would make them."""
    own = Path(mkdtemp())  # not in the folder of the results, which is sent on: bases and thresholds are megabytes
    layers, heads, groups, dim, _ = shape
    files = calibrations(own, groups, dim, layers, heads)
    if not hasattr(method, "thresholds"):
        return files
    shared = {name: getattr(method, name) for name in ("keep", "rows", "bytes", "heads", "placement", "d")
              if hasattr(method, name)}  # fmt: skip
    basis = {} if "d" in shared else None
    task = Thresholds(**shared, basis=basis, tokens=max(256, TOKENS), window=TOKENS)
    full = plugins.load("methods", "full")()
    with bind(model, full, artifacts=files) as binding:
        made = task.run(session_of(Drawn, model, full, binding)).artifact
    files["thresholds"] = own / "thresholds.safetensors"
    files["thresholds"].write_bytes(made)
    return files


def score(model, method, files, ids):
    """Seconds, peak memory and density of one text."""
    with bind(model, method, artifacts=files) as binding:
        session = session_of(Session, model, method, binding)
        session.score(ids[:, : TOKENS // 4], TOKENS // 8)  # bases, tables and features, which a session makes once
        binding.reset()
        if not TINY:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        logs = session.score(ids, ids.shape[1] // 8)
        finite = bool(logs.isfinite().all())  # waits for the device
        seconds = time.perf_counter() - begun
        if not finite:
            raise ValueError("log-probabilities are not finite")
        return seconds, summary([binding.ledger.sums()])["decode"]["density"]


def steps(job, folder):
    """What a process does: prepares its methods on each shape, waits for its turn, times them."""
    device, begun, ready = "cpu" if TINY else "cuda", time.perf_counter(), []
    torch.set_num_threads(2)
    shapes, methods = (part.split(",") for part in job.split("+")[1:])
    ids = tokens(1, TOKENS).to(device)
    for name in shapes:
        shape = SHAPES[name]
        model = model_of(shape, device)
        for method_name in methods:
            if time.perf_counter() - begun > 0.75 * PREPARE_S:  # rather no line of this one than of none
                break
            try:
                method = method_of(method_name)
                files = calibrated(model, method, shape)
                score(model, method, files, ids)
                ready.append((name, method_name, model, method, files))
            except Exception:  # noqa: BLE001 - costs the others nothing
                traceback.print_exc()
            print(f"{name} {method_name}: prepared after {time.perf_counter() - begun:.1f} s", flush=True)
    yield
    full = plugins.load("methods", "full")()
    for name, method_name, model, method, files in ready:
        score(model, full, files, ids)  # the first time in this process takes longer
        for _ in range(TURNS[name]):
            dense, _density = score(model, full, files, ids)
            if not TINY:
                torch.cuda.reset_peak_memory_stats()
            seconds, density = score(model, method, files, ids)
            peak = 0.0 if TINY else torch.cuda.max_memory_allocated() / 2**20
            card = "cpu" if TINY else torch.cuda.get_device_name()
            put(folder, Line(name, method_name, TOKENS, card, seconds, dense, peak, density))


def put(folder, line):
    """Add a line; its process may be ended before the next."""
    with (folder / "scoring.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(asdict(line).values())


def table(folder, shape, names):
    """Print the median time of each method, and over dense's in the same process; whether each has one."""
    with (folder / "scoring.csv").open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["shape"] == shape]
    found = {name: [line for line in lines if line["method"] == name] for name in names}
    rows = [
        (median_of(own, "seconds") / median_of(own, "dense_seconds"), name, own) for name, own in found.items() if own
    ]
    for ratio, name, own in sorted(rows):
        print(f"{shape:14} {name:28} {median_of(own, 'seconds'):8.3f} s {ratio:8.2f} x dense "
              f"({median_of(own, 'dense_seconds'):.3f} s) {median_of(own, 'peak_mib'):8.0f} MiB "
              f"density {median_of(own, 'density'):.3f}")  # fmt: skip
    for name in [name for name, own in found.items() if not own]:
        print(f"{shape:14} {name:28} no line")
    return all(found.values())


def median_of(lines, column):
    """Of a column of numbers."""
    return statistics.median(float(line[column]) for line in lines)


def main(folder, shapes, names):
    """Score with each method in turn; whether all did."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "scoring.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(list(Line.__dataclass_fields__))
    share = [names[first::JOBS] for first in range(min(JOBS, len(names)))]
    jobs = [f"scoring_{i}+{','.join(shapes)}+{','.join(part)}" for i, part in enumerate(share)]
    run_in_turns(steps, jobs, folder, PREPARE_S, TURN_S)
    whole = [table(folder, shape, names) for shape in shapes]
    return all(whole)


def given():
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*sorted(plugins.names("methods"), key=lambda name: name != "full"), *VARIANTS]
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"default all: {', '.join(every)}")
    parser.add_argument(
        "--shape", action="append", choices=SHAPES, help="of the model, may be given again; default all"
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes on a CPU: shows that the script works")
    found = parser.parse_args()
    return found.folder, found.shape or list(SHAPES), found.methods or every


if __name__ == "__main__":
    sys.exit(0 if main(*given()) else 1)
