"""Rows turned by a model's own rotary embedding, whether or not the op `turn_rows` knows how it pairs dimensions."""

import sys
from types import SimpleNamespace

import pytest
import torch
from conftest_models import make_method, make_model, tokens
from transformers import CohereConfig, CohereForCausalLM, GptOssConfig, GptOssForCausalLM

from lacuna.models.bind import bind
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


@pytest.mark.parametrize("name", MODELS)
def test_turned_rows_are_put_where_they_belong(name):
    """A sink would be written over another row, or one that a text does not have over whatever lies first."""
    model = MODELS[name]()
    torch.manual_seed(2)
    x, cache = torch.randn(2, HEADS, 3, DIM), torch.randn(2, HEADS, 6, DIM)
    by, want = torch.tensor([[4, 4, 4], [1, -2, 7]]), cache.clone()
    turned = own(model, x, by)
    want[0, :, 0], want[0, :, 5], want[1, :, 2] = turned[0, :, 0], turned[0, :, 2], turned[1, :, 1]
    Rotation(model).by(by).put(x, torch.tensor([[0, -1, 5], [-1, 2, -1]]), cache)
    torch.testing.assert_close(cache, want)


def test_intervals_share_few_angles():
    """The angles of every length that a text once had would fill the memory."""
    rotation, x = Rotation(make_model()), torch.randn(1, 1, 2, DIM)
    for high in range(3, 300):
        rotation.between(-high // 2, high, x)
        rotation.between(0, high, x)
    tables = rotation._tables[x.device]
    assert sum(table.high - table.low for table in tables) <= 4 * 449  # the widest interval, twice too long at most
    found, own_table = rotation.between(-7, 20, x), Rotation(make_model()).between(-7, 20, x)
    assert torch.equal(found.cos_PR, own_table.cos_PR)
    assert torch.equal(found.sin_PR, own_table.sin_PR)


def test_angles_that_were_given_out_stay_where_they_are():
    """A captured CUDA graph would read, in place of angles, whatever lies there since."""
    rotation, x, given = Rotation(make_model()), torch.randn(1, 1, 2, DIM), set()
    for high in (5, 40, 300, 7, 2000):
        given.add(rotation.between(-high, high, x).cos_PR.untyped_storage().data_ptr())
    held = {table.all.cos_PR.untyped_storage().data_ptr() for table in rotation._tables[x.device]}
    assert given <= held


def test_angles_worked_out_during_a_capture_are_not_kept(monkeypatch):
    """They hold nothing before the first replay, and rows outside of the graph would be turned by that."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    rotation, on_gpu = Rotation(make_model()), SimpleNamespace(is_cuda=True, device=torch.device("cpu"))
    before = rotation.between(0, 9, torch.zeros(1))
    during = rotation.between(-5, 9, on_gpu)
    assert torch.equal(during.cos_PR[5:], before.cos_PR)
    assert [(table.low, table.high) for table in rotation._tables[on_gpu.device]] == [(0, 9)]
    assert rotation.between(2, 8, on_gpu).cos_PR.data_ptr() == before.cos_PR[2:].data_ptr()


def test_all_layers_and_caches_share_the_angles():
    """Each layer of each batch of texts would work out, and hold, the same angles."""
    model = make_model()
    with bind(model, make_method("landmark", {"rows": 12, "chunk": 4})) as binding:
        caches = [model(tokens(1, 9), use_cache=True).past_key_values for _ in range(2)]
        rotations = {memory.site.rotate for cache in caches for memory in binding.memories(cache)}
    assert rotations == {binding.rotation}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_captured_graph_reads_its_angles_for_good():
    """A replay would turn rows by what took the place of the angles since."""
    rotation, x = Rotation(make_model().to("cuda")), torch.randn(1, 1, 4, DIM, device="cuda")
    by = torch.arange(4, device="cuda")[None, None, :, None]
    rotation.between(0, 4, x)(x, by)  # compiled
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        known, new = rotation.between(0, 4, x)(x, by), rotation.between(-3, 400, x)(x, by)
    wanted = rotation.between(-3, 4000, x)(x, by).clone()
    torch.full((2**24,), float("nan"), device="cuda")  # over whatever was freed
    graph.replay()
    torch.testing.assert_close(new, wanted)
    torch.testing.assert_close(known, rotation.between(0, 4, x)(x, by))
