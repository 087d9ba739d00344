"""Run by test_shard.py under mpirun: one rank of split models; rank 0 writes what all of them computed."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from conftest_models import GAPS, make_method, make_model, tokens

from lacuna.harness.ranks import find_ranks
from lacuna.harness.world import World
from lacuna.models import shard
from lacuna.models.bind import bind
from lacuna.models.ledger import summary

# every method by its first example (test_head_shards.py has all); layouts of other kinds; budgets in bytes
CASES = [(name, args) for name, cases in GAPS.items() for args in cases[:1]] + [
    ("topk", {"keep": 0.25, "heads": "query"}),
    ("snapkv", {"keep": 0.5, "window": 3, "heads": "query"}),
    ("h2o", {"rows": [9, 6], "positions": "cache"}),
    ("evict_then_select", {"rows": 10, "evict": "keydiff", "select": "loki", "select_args": {"d": 0.5}, "basis": {}}),
    ("topk", {"bytes": 6000}),
    ("snapkv", {"bytes": 3000, "window": 3}),
    ("top_theta", {"rows": 4, "sdc": "offline", "vmc": "mean"}),
    ("linear_residual", {"rows": 8, "centre": "mean", "width": 4, "basis": {}}),
]


def outputs(model, held, world, artifacts):
    """Logits of prompt and greedy steps, tokens, and the ledger of all ranks, for each method."""
    found = {}
    for name, args in CASES:
        try:
            found[f"{name}-{args}"] = measured(model, make_method(name, args), held, world, artifacts)
        except ValueError as refused:
            found[f"{name}-{args}"] = str(refused)
    return found


def measured(model, method, held, world, artifacts):
    """The same of one."""
    with bind(model, method, artifacts=artifacts, shard=held) as binding:
        cache, new, logits, words = binding.cache(), tokens(2, 30), [], []
        for _ in range(8):
            out = model(new, past_key_values=cache, use_cache=True).logits[:, -1:]
            new = out.argmax(-1)
            logits.append(out)
            words.append(new)
        return torch.cat(logits, 1), torch.cat(words, 1), summary(world.gather(binding.ledger.sums()))


def seen(world, heads, groups, files):
    """What all ranks of a world compute with a model of so many heads; `files` are calibrations by argument."""
    model = make_model("llama", num_attention_heads=heads, num_key_value_heads=groups, hidden_size=16 * heads)
    held = shard.split(model, world.ranks.rank, world.ranks.size)
    sums, own = [], dist.all_reduce
    dist.all_reduce = lambda part, **kwargs: sums.append(part.shape) or own(part, **kwargs)
    model(tokens(2, 1))
    dist.all_reduce = own
    return outputs(model, held, world, files) | {"sums": (len(sums), held.sums)}


def main(asked: str, path: str) -> None:
    world = World(find_ranks(), "cpu", 60.0)
    world.join()
    found = {(heads, groups): seen(world, heads, groups, {n: Path(p) for n, p in files.items()})
             for heads, groups, files in json.loads(asked)}  # fmt: skip
    if world.ranks.rank == 0:
        torch.save(found, path)
    world.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
