"""How much longer scoring a long text takes under a method than dense; `pytest -m slow -s` prints the ratios."""

import time

import pytest
import torch
from conftest_models import make_method, make_model, tokens

from lacuna.models.bind import bind
from lacuna.results import plugins

TOKENS, MOST = 4096, 20.0
LIKE_POCKET = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": TOKENS,
    "lacuna_landmark": {"token": 0, "control": 0, "block": 50, "length": 512, "gated": False},
}


# a quarter of a short text leaves less than the state of one, and is more blocks than the other was made for
OTHERWISE = {"ratchetkv": {"rows": 512}, "landmark": {}}


def cpu_seconds(model, method, artifacts):
    """CPU time, which other programs on the machine do not add to, of a text fed as rows that the method acts on."""
    ids = tokens(1, TOKENS)
    with bind(model, method, artifacts=artifacts) as binding:
        start, cache = time.process_time(), binding.cache()
        binding.feeding = "prefill"
        model(ids[:, :1], past_key_values=cache, use_cache=True)
        binding.feeding = "decode"
        model.model(ids[:, 1:], past_key_values=cache, use_cache=True)
        return time.process_time() - start


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
