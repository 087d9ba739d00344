"""Rows turned by a model's own rotary embedding, whether or not the op `turn_rows` knows how it pairs dimensions."""

import sys

import pytest
import torch
from conftest_models import make_model
from transformers import CohereConfig, CohereForCausalLM, GptOssConfig, GptOssForCausalLM

from lacuna.models.rotation import Rotation, pairs_halves

HEADS, DIM = 3, 16


def cohere():
    """A model that pairs neighbours."""
    sizes = {"hidden_size": 4 * DIM, "intermediate_size": 8, "vocab_size": 9, "num_hidden_layers": 1}
    return CohereForCausalLM(CohereConfig(num_attention_heads=4, num_key_value_heads=4, **sizes)).eval()


def gpt_oss():
    """A model whose angles have half the width, with angles that do not depend on length."""
    sizes = {"hidden_size": 4 * DIM, "intermediate_size": 8, "vocab_size": 9, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": DIM, "num_local_experts": 2}
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    return GptOssForCausalLM(GptOssConfig(**heads, **sizes, rope_parameters=plain)).eval()


MODELS = {"llama": make_model, "gpt_neox": lambda: make_model("gpt_neox"), "cohere": cohere, "gpt_oss": gpt_oss}
HALVES = {"llama": True, "gpt_neox": True, "cohere": False, "gpt_oss": False}


def own(model, x, by):
    """The model's code on the model's angles: no more than it does itself."""
    base = model.base_model
    cos, sin = base.rotary_emb(x, by)
    return sys.modules[type(base).__module__].apply_rotary_pos_emb(x, x, cos, sin)[0]


@pytest.mark.parametrize("name", MODELS)
def test_turns_are_the_models_own(name):
    """A model that pairs other dimensions than the op does would get keys at places where they never were."""
    model = MODELS[name]()
    rotation = Rotation(model)
    assert pairs_halves(rotation._apply) == HALVES[name]
    torch.manual_seed(0)
    x, by = torch.randn(2, HEADS, 7, DIM), torch.randint(-5, 9, (2, 7))
    torch.testing.assert_close(rotation(x, by), own(model, x, by))
    torch.testing.assert_close(rotation(rotation(x, by), -by), x)


@pytest.mark.parametrize("sets", [1, HEADS])
@pytest.mark.parametrize("name", MODELS)
def test_each_row_may_be_turned_several_times(name, sets):
    """A query would stand at another slot's place, or at another head's."""
    model = MODELS[name]()
    rotation = Rotation(model)
    torch.manual_seed(1)
    x, by = torch.randn(2, HEADS, 6, DIM), torch.randint(-4, 8, (2, sets, 6, 3))
    found = rotation.between(-4, 8, x)(x, by + 4)
    each = by.expand(-1, HEADS, -1, -1)
    for head, turn in torch.cartesian_prod(torch.arange(HEADS), torch.arange(3)).tolist():
        want = own(model, x[:, head : head + 1], each[:, head, :, turn])
        torch.testing.assert_close(found[:, head : head + 1, :, turn], want)


def test_few_intervals_are_kept():
    """The angles of every length that a text once had would fill the memory."""
    rotation, x = Rotation(make_model()), torch.randn(1, 1, 2, DIM)
    for high in range(3, 20):
        rotation.between(0, high, x)
    assert len(rotation._known) <= 4
    assert rotation.between(0, 19, x) is rotation.between(0, 19, x)
