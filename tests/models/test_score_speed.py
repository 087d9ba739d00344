"""How much longer scoring a long text takes under a method than dense; `pytest -m slow -s` prints the ratios."""

import time

import pytest
import torch
from conftest_models import make_method, make_model, tokens

from lacuna.models.bind import bind
from lacuna.models.ledger import summary
from lacuna.results import plugins

PROMPT, TOKENS, MOST = 256, 4096, 20.0
LIKE_POCKET = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": PROMPT + TOKENS,
    "lacuna_landmark": {"token": 0, "control": 0, "block": 50, "length": 512, "gated": False},
}


# a quarter of the prompt leaves less than the state of one, and is more blocks than another was made for; two skip layers
OTHERWISE = {"ratchetkv": {"keep": 0.75}, "landmark": {}, **{n: {"keep": 0.25, "skip": 0} for n in ("l2norm", "quest")}}


def cpu_seconds(model, method, artifacts):
    """CPU time, which other programs on the machine do not add to, of rows that the method acts on after a prompt."""
    ids = tokens(1, PROMPT + TOKENS)
    with bind(model, method, artifacts=artifacts) as binding:
        cache = binding.cache()
        binding.feeding = "prefill"
        model(ids[:, :PROMPT], past_key_values=cache, use_cache=True)
        binding.feeding, start = "decode", time.process_time()
        model.model(ids[:, PROMPT:], past_key_values=cache, use_cache=True)
        taken = time.process_time() - start
        told = summary([binding.ledger.sums()])["decode"]
    assert told["tokens"] == TOKENS
    less = told["density"] < 1 or told["bytes_read_per_token"] < told["bytes_dense_per_token"]
    assert less == (type(method).__name__ != "Full")  # a method that leaves nothing out is as fast as dense
    return taken


@pytest.mark.slow
def test_scoring_costs_less_than_twenty_times_dense(basis):
    """A method that walks a text row by row could not be measured on long ones at all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # CPU time of threads that wait for one another is no work
    try:
        model, artifacts = make_model(**LIKE_POCKET), basis(3, 64, 2, 6)
        dense = min(cpu_seconds(model, make_method("full", {}), artifacts) for _ in range(3))
        ratios = {}
        for name in plugins.names("methods"):
            plugin = plugins.describe("methods", name)
            given = {"keep": 0.25} if any(f.name == "keep" for f in plugin.fields) else {}
            given = OTHERWISE.get(name, given)
            ratios[name] = cpu_seconds(model, make_method(name, given), artifacts) / dense
            print(f"{name:18} {ratios[name]:6.1f} x dense")
    finally:
        torch.set_num_threads(threads)
    assert {name: ratio for name, ratio in ratios.items() if ratio >= MOST} == {}
