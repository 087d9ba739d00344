"""Run by test_analyses_ranks.py under mpirun: every analysis on one rank of a split model; rank 0 writes the samples."""

import json
import sys
from pathlib import Path

from conftest_models import make_method, make_model
from test_thresholds import letters

from lacuna.harness.lm import LM
from lacuna.harness.ranks import find_ranks
from lacuna.harness.tasks.attention_maps import AttentionMaps
from lacuna.harness.tasks.kept_rows import KeptRows
from lacuna.harness.tasks.output_error import OutputError
from lacuna.harness.world import World
from lacuna.models import shard
from lacuna.results.cell import Cell, Spec

METHODS = [("topk", {}), ("topk", {"heads": "query"}), ("full", {})]


def main(heads: int, groups: int, corpus: str, path: str) -> None:
    world = World(find_ranks(), "cpu", 60.0)
    world.join()
    model = make_model("llama", num_attention_heads=heads, num_key_value_heads=groups, hidden_size=16 * heads)
    lm = LM(model, letters, shard.split(model, world.ranks.rank, world.ranks.size), world)
    text = {"corpus": corpus, "window": 24, "prompt": 8}
    tasks = [OutputError(windows=2, **text), KeptRows(windows=2, **text), AttentionMaps(head=heads - 1, **text)]
    found = {}
    for name, args in METHODS:
        for task in tasks:
            cell = Cell(Spec("m"), Spec(name, args={"keep": 0.25} if name == "topk" else {}), Spec("t"))
            with lm.under(make_method(name, args), cell, {}) as session:
                outcome = task.run(session)
            found[f"{name} {args} {type(task).__name__}"] = [dict(outcome.metrics), list(outcome.samples)]
    if world.ranks.rank == 0:
        Path(path).write_text(json.dumps(found), encoding="utf-8")
    world.leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
