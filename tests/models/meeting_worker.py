"""Run by test_rank_sum.py under mpirun on GPUs: replayed steps of a split model; rank 0 writes their logits."""

import sys

import torch
from conftest_models import make_method, make_model, tokens

from lacuna.harness.engine import engine, greedy
from lacuna.harness.lm import LM, Session
from lacuna.harness.ranks import find_ranks
from lacuna.harness.world import World
from lacuna.models import shard
from lacuna.models.bind import bind


def seventh(logits_BV: torch.Tensor) -> torch.Tensor:
    """A token that does not hang on how logits are rounded."""
    return torch.full_like(logits_BV[:, 0], 7, dtype=torch.long)


def main(path: str, dtype: str) -> None:
    world = World(find_ranks(), "cuda", 60.0)
    world.join()
    model = make_model("llama", num_attention_heads=8, num_key_value_heads=4, hidden_size=512, head_dim=64)
    held = shard.split(model.cuda().to(getattr(torch, dtype)), world.ranks.rank, world.ranks.size)
    with bind(model, make_method("full", {}), artifacts={}, shard=held) as binding:
        session = Session(LM(model, None, held, world), make_method("full", {}), None, binding)
        texts = [tokens(1, n, seed=n)[0].tolist() for n in (30, 24)]
        with engine(session, session.prefill(texts), 60, greedy if dtype == "float32" else seventh, "fused") as steps:
            steps.capture()
            assert steps.agrees()
            found = []
            while steps.made < 60:
                steps.step()
                found.append(steps.logits.clone())
    if world.ranks.rank == 0:
        torch.save({"logits": torch.stack(found).cpu(), "sums": held.sums}, path)
    world.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
