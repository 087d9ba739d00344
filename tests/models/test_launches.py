"""How many launches a decode step makes between its matrix products: each costs a GPU about two microseconds."""

import pytest
import torch
from conftest_models import make_method, make_model, tokens
from launch_counter import Launches, stepping

from lacuna.kernels.op import watched
from lacuna.models import attend, many
from lacuna.models.bind import bind
from lacuna.models.joined import joined

KEEP = {"keep": 0.25}


def launches(layers, name, args, basis):
    """Of one step of a model of so many layers."""
    model = make_model(num_key_value_heads=2, num_hidden_layers=layers)
    with stepping(model, make_method(name, args), basis(layers=layers)) as steps, Launches() as seen, watched(seen.op):
        steps.step()
    return seen.found


def a_layer(name, args, basis):
    """Launches of one layer more."""
    more, fewer = (launches(layers, name, args, basis) for layers in (3, 2))
    more.subtract(fewer)
    return {op: count for op, count in more.items() if count}


@pytest.mark.parametrize(
    ("name", "args", "most"),
    [
        ("full", {}, 9),
        ("topk", {"rows": 5}, 9),
        ("loki", {"keep": 0.25, "d": 0.25}, 9),
        ("loki_theta", {"keep": 0.25, "d": 0.25, "sdc": "none", "vmc": "none"}, 10),
        ("loki_theta", {"keep": 0.25, "d": 0.25}, 11),
        ("sparq", {"keep": 0.25}, 13),
        ("sparq", {"rows": 5, "budget_rule": "released"}, 13),
        ("sparq", {"keep": 0.25, "rest": "none"}, 11),
        ("top_theta", {"keep": 0.25}, 10),
        ("top_theta", {"keep": 0.25, "sdc": "exact", "vmc": "mean"}, 10),
        ("quest", {"keep": 0.5, "page": 4, "skip": 0}, 14),
        ("quest", {"rows": (9, 8), "page": 4, "skip": 0}, 14),
        ("quest", {"keep": 0.5, "page": 4, "skip": 0, "heads": "query"}, 24),
        ("quest", {"keep": 0.5, "page": 4, "skip": 3}, 9),
        ("streaming_llm", {"rows": 16, "sinks": 2}, 10),
        ("streaming_llm", {"rows": 16, "sinks": 2, "positions": "text"}, 9),
        ("streaming_llm", {"keep": 0.5, "sinks": 2}, 10),
    ],
)
def test_a_layer_makes_few_launches(name, args, most, basis):
    """Small kernels between the products crept in: at 30 a layer they took a third of a step on a GPU."""
    found = a_layer(name, args, basis)
    assert sum(found.values()) <= most, found
    assert found["skinny_linear"] == 4
    assert found["append_row"] == 1


@pytest.mark.parametrize(
    ("name", "args", "most"),
    [
        ("snapkv", {"rows": 9, "window": 4}, 9),
        ("snapkv", {"rows": 9, "window": 4, "heads": "query"}, 11),
        ("pyramidkv", {"rows": 12, "window": 4}, 10),
        ("adakv", {"rows": 9, "window": 4}, 10),
        ("keydiff", {"keep": 0.25}, 9),
        ("l2norm", {"keep": 0.25, "skip": 1}, 9),
        ("h2o", {"keep": 0.25, "evict": "once"}, 9),
    ],
)
def test_a_layer_of_a_cache_that_was_cut_makes_few_launches(name, args, most, basis):
    """Where the text of each head stands would be looked for in every step, or heads apart be copied to be attended."""
    found = a_layer(name, args, basis)
    assert sum(found.values()) <= most, found
    assert found["append_row"] == found["dense_decode"] == 1


@pytest.mark.parametrize(
    "more", [{"read": 0.5}, {"read": 5}, {"read": 0.5, "select": "loki", "select_args": {"d": 0.5}, "basis": {}}]
)
def test_a_choice_among_what_was_cut_makes_as_many_launches_as_one_among_all(more, basis):
    """Where the text of each head stands, and how much of it is read, would be worked out in every layer."""
    found = a_layer("evict_then_select", {"rows": 12, "evict_args": {"window": 4}, **more}, basis)
    assert sum(found.values()) <= 9, found
    assert found["append_row"] == found["topk_decode"] == 1


@pytest.mark.parametrize("evict", ["adakv", "pyramidkv"])
def test_a_choice_where_layers_hold_different_rows_makes_no_more_launches_than_told(evict, basis):
    """What each layer works out for itself there would grow unseen."""
    found = a_layer("evict_then_select", {"rows": 12, "read": 0.5, "evict": evict, "evict_args": {"window": 4}}, basis)
    assert sum(found.values()) <= 25, found


@pytest.mark.parametrize(
    ("name", "args", "most"),
    [
        ("linear_residual", {"rows": 9, "sinks": 2}, 20),
        ("linear_residual", {"rows": 9, "sinks": 2, "features": "elu"}, 22),
        ("linear_residual", {"rows": 9, "sinks": 2, "centre": "mean"}, 41),
        ("linear_residual", {"rows": 9, "sinks": 2, "features": "favor", "width": 24}, 36),
        ("ratchetkv", {"rows": 44}, 34),
    ],
)
def test_a_layer_beside_a_state_makes_few_launches(name, args, most, basis):
    """The map's own small kernels would multiply, or a row leave, the state change or the marks in several launches."""
    found = a_layer(name, args, basis)
    assert sum(found.values()) <= most, found
    assert all(found[op] == 1 for op in ("rotate_rows", "swap_row", "marked_decode", "linear_decode")), found


@pytest.mark.parametrize(
    ("name", "args", "most"),
    [("h2o", {"keep": 0.25}, 10), ("h2o", {"bytes": 4000, "recent": 3}, 10), ("tova", {"keep": 0.25, "heads": "kv"}, 10),
     ("tova", {"keep": 0.25}, 10)],
)  # fmt: skip
def test_a_layer_of_a_full_cache_makes_few_launches(name, args, most, basis):
    """What all layers of one budget share would be worked out in each, or a row leave in several launches."""
    found = a_layer(name, args, basis)
    assert sum(found.values()) <= most, found
    assert found["skinny_linear"] == 4
    assert all(found[op] == 1 for op in ("rotate_rows", "swap_row", "marked_decode")), found


def launches_of_a_piece(layers, name, args, files):
    """Of the third lot of rows fed at once, the first of them a dense prompt."""
    model, ids = make_model(num_key_value_heads=2, num_hidden_layers=layers), tokens(1, 240)
    with bind(model, make_method(name, args), artifacts=files) as binding:
        cache, binding.feeding = binding.cache(), "prefill"
        model(ids[:, :80], past_key_values=cache, use_cache=True)
        binding.feeding = "decode"
        model(ids[:, 80:160], past_key_values=cache, use_cache=True)
        with Launches() as seen, watched(seen.op):
            model(ids[:, 160:], past_key_values=cache, use_cache=True)
    return seen.found


@pytest.mark.parametrize(
    ("name", "args", "most"),
    [
        ("linear_residual", {"keep": 0.25, "sinks": 2, "recent": 1.0}, 108),
        ("linear_residual", {"keep": 0.25, "sinks": 2, "recent": 1.0, "features": "elu"}, 110),
        ("ratchetkv", {"rows": 60}, 129),
    ],
)
def test_many_rows_beside_a_state_make_few_launches(name, args, most, basis):
    """A long text waits for its launches: what is the same in all layers would be worked out, and sorted, in each."""
    more, fewer = (launches_of_a_piece(layers, name, args, basis(layers=layers)) for layers in (3, 2))
    more.subtract(fewer)
    assert more["sort"] == more["cumsum"] == 0
    assert all(more[op] == 1 for op in ("held_prefill", "linear_prefill")), more
    assert sum(more.values()) <= most, more


@pytest.mark.parametrize(
    ("name", "args", "most"),
    [("h2o", KEEP, 111), ("tova", KEEP, 111), ("linear_residual", {**KEEP, "sinks": 2}, 138), ("sparq", KEEP, 118),
     ("loki_theta", KEEP, 130), ("topk", KEEP, 85), ("streaming_llm", KEEP, 113), ("full", {}, 71)],
)  # fmt: skip
def test_many_rows_make_few_launches(name, args, most, basis, monkeypatch):
    """A long text waits for its launches: budgets would be worked out in each layer; or what is around a walk asks the device."""
    monkeypatch.setattr(many, "fits", lambda _q, memory, call: call.new > 1 and many.plain(memory, call))
    monkeypatch.setattr(many, "fits_hidden", lambda _q, call: call.new > 1)
    # A causal bias is no launch, and no tensor that can be made while launches are counted.
    monkeypatch.setattr(attend, "causal_lower_right", lambda *_: None)
    more, fewer = (launches_of_a_piece(layers, name, args, basis(layers=layers)) for layers in (3, 2))
    more.subtract(fewer)
    assert sum(more.values()) <= most, more
    asks = {"h2o": 0, "tova": 0, "streaming_llm": 0}
    assert more["_local_scalar_dense"] == asks.get(name, more["_local_scalar_dense"])


def test_weights_that_are_joined_are_held_once(basis):
    """Products would be joined by a second copy of the weights, or give what other weights give."""
    model = make_model(num_key_value_heads=2)
    layer = model.model.layers[0]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with stepping(model, make_method("full", {}), basis()):
        parts = [layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight]
        whole = parts[0].untyped_storage()
        assert {part.untyped_storage().data_ptr() for part in parts} == {whole.data_ptr()}
        assert whole.nbytes() == sum(part.nbytes for part in parts)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_projections_of_different_make_are_refused():
    """A bias, or a layer that is no plain product, would silently be left out."""
    with pytest.raises(ValueError, match="different make"):
        joined((torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False)), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="Identity"):
        joined((torch.nn.Linear(4, 4), torch.nn.Identity()), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="Doubled"):
        joined((torch.nn.Linear(4, 4), Doubled(4, 4)), torch.zeros(1, 4))


class Doubled(torch.nn.Linear):
    """Computes something else than its weight tells."""

    def forward(self, x):
        """Twice the product."""
        return 2 * super().forward(x)
