"""How many launches a piece of a long text takes under `landmark`: a host needs longer for them than a GPU computes."""

from types import SimpleNamespace

import pytest
import torch
from conftest_models import make_method, make_model, tokens
from launch_counter import Launches

from lacuna.kernels.landmark_attention import eager
from lacuna.kernels.op import watched
from lacuna.models import landmark_chances, landmark_places
from lacuna.models.bind import bind

SAID = {"token": 0, "control": 0, "block": 50, "length": 512, "gated": False}


@torch.no_grad()
def launches(layers, monkeypatch):
    """Of 300 rows after 600, all at once as on a GPU."""
    model, ids = make_model(num_hidden_layers=layers, lacuna_landmark=SAID), tokens(1, 900)
    monkeypatch.setitem(landmark_chances.AT_ONCE, "cpu", landmark_chances.AT_ONCE["cuda"])
    with bind(model, make_method("landmark", {})) as binding:
        cache = binding.cache()
        binding.feeding = "decode"
        model.model(ids[:, :600], past_key_values=cache)
        with Launches() as seen, watched(seen.op), monkeypatch.context() as changed:
            kernel = SimpleNamespace(name="landmark_attention")
            changed.setattr(
                landmark_places, "landmark_forward", lambda *it: seen.op(kernel, it, eager.landmark_forward)
            )
            model.model(ids[:, 600:], past_key_values=cache)
    return seen.found


def test_a_layer_takes_few_launches(monkeypatch):
    """Index arithmetic or rotations that each layer does anew take longer than its attention."""
    more, fewer = (launches(layers, monkeypatch) for layers in (3, 2))
    more.subtract(fewer)
    ours = {name: more[name] for name in ("turn_rows", "select_topk", "landmark_retrieve", "landmark_attention")}
    assert ours == {"turn_rows": 6, "select_topk": 1, "landmark_retrieve": 1, "landmark_attention": 1}
    assert sum(more.values()) <= 134


@pytest.mark.parametrize(("rows", "times"), [(12, 1), ([8, 15, 15], 2)])
def test_layers_share_what_they_may_choose(rows, times, monkeypatch):
    """Index arithmetic that each layer does anew takes longer than attention itself, or one layer gets another's k."""
    model, seen = make_model(num_hidden_layers=3), []
    method = make_method("landmark", {"rows": rows, "chunk": 4})
    whole = type(method).stretch
    monkeypatch.setattr(type(method), "stretch", lambda *given: seen.append(whole(*given)) or seen[-1])
    with bind(model, method):
        model(tokens(2, 30))
    assert [part.pieces[0][1].widest for part in seen] == ([2] if times == 1 else [1, 2])
