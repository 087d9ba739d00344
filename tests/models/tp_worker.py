"""Run by test_shard.py under mpirun: one rank of a split model; rank 0 writes what all of them computed."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from conftest_models import make_method, make_model, tokens

from lacuna.harness.ranks import find_ranks
from lacuna.harness.world import World
from lacuna.models import shard
from lacuna.models.bind import bind
from lacuna.models.ledger import summary

CASES = [
    ("full", {}),
    ("topk", {"bytes": 6000}),
    ("h2o", {"rows": [9, 6], "positions": "cache"}),
    ("snapkv", {"bytes": 3000, "window": 3}),
    ("topk", {"keep": 0.25}),
    ("topk", {"keep": 0.25, "heads": "query"}),
    ("loki", {"keep": 0.25, "d": 0.5}),
    ("streaming_llm", {"sinks": 2, "rows": 8}),
    ("snapkv", {"rows": 8, "window": 3}),
    ("snapkv", {"keep": 0.5, "window": 3, "heads": "query"}),
    ("pyramidkv", {"rows": 8, "window": 3}),
    ("h2o", {"keep": 0.5}),
    ("tova", {"rows": 8, "heads": "kv"}),
    ("l2norm", {"rows": 8, "skip": 0}),
    ("keydiff", {"rows": 8}),
    ("quest", {"rows": 9, "page": 4, "skip": 0}),
    ("sparq", {"keep": 0.25}),
    ("pca_attn", {"d": 0.5}),
    ("top_theta", {"rows": 4, "sdc": "offline", "vmc": "mean"}),
    ("loki_theta", {"keep": 0.25, "d": 0.5}),
    ("linear_residual", {"rows": 8}),
    ("linear_residual", {"rows": 8, "centre": "mean", "width": 4, "basis": {}}),
    ("linear_residual", {"rows": 8, "features": "favor"}),
    ("linear_residual", {"rows": 8, "features": "hedgehog", "width": 4, "trained": {}}),
    ("ratchetkv", {"rows": 41}),
    ("ntk", {"prefix": 12}),
    ("evict_then_select", {"rows": 10, "evict_args": {"window": 3}}),
    ("evict_then_select", {"rows": 10, "evict": "keydiff", "select": "loki", "select_args": {"d": 0.5}, "basis": {}}),
]


def outputs(model, held, world, artifacts):
    """Logits of prompt and greedy steps, tokens, and the ledger of all ranks, for each method."""
    found = {}
    for name, args in CASES:
        with bind(model, make_method(name, args), artifacts=artifacts, shard=held) as binding:
            cache, new, logits, words = binding.cache(), tokens(2, 30), [], []
            for _ in range(8):
                out = model(new, past_key_values=cache, use_cache=True).logits[:, -1:]
                new = out.argmax(-1)
                logits.append(out)
                words.append(new)
            told = summary(world.gather(binding.ledger.sums()))
        found[f"{name}-{args}"] = (torch.cat(logits, 1), torch.cat(words, 1), told)
    return found


def main(heads: int, groups: int, files: list[str], path: str) -> None:
    world = World(find_ranks(), "cpu", 60.0)
    world.join()
    model = make_model("llama", num_attention_heads=heads, num_key_value_heads=groups, hidden_size=16 * heads)
    held = shard.split(model, world.ranks.rank, world.ranks.size)
    sums, own = [], dist.all_reduce
    dist.all_reduce = lambda part, **kwargs: sums.append(part.shape) or own(part, **kwargs)
    model(tokens(2, 1))
    dist.all_reduce = own
    found = outputs(model, held, world, {n: Path(p) for n, p in (f.split("=") for f in files)})
    found["sums"] = (len(sums), held.sums)
    if world.ranks.rank == 0:
        torch.save(found, path)
    world.leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:-1], sys.argv[-1])
