"""Learned feature maps: what the training teaches and leaves alone, and that the method takes what it made."""

import dataclasses
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from lacuna.harness.distil import Lesson
from lacuna.harness.lm import LM
from lacuna.harness.ranks import Ranks
from lacuna.harness.tasks.feature_maps import FeatureMaps, _MapPupil
from lacuna.harness.world import World
from lacuna.models import shard
from lacuna.models.bind import bind
from lacuna.models.memory import Site
from lacuna.models.methods.full import Full
from lacuna.models.methods.linear_residual import LinearResidual
from lacuna.results.cell import Cell, Spec

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from conftest_models import make_model, tokens

MAPS = ("hedgehog", "less", "elu_trained")
SMALL = {"sinks": 2, "exact": 8, "tokens": 480, "window": 48, "at_once": 3, "rate": 1e-2}


def letters(text, add_special_tokens):
    return {"input_ids": [ord(c) % 97 for c in text]}


@contextmanager
def session(model):
    lm = LM(model, letters, shard.split(model, 0, 1), World(Ranks(), "cpu"))
    with lm.under(Full(), Cell(Spec("m"), Spec("full"), Spec("feature_maps")), {}) as found:
        yield found


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("".join(chr(32 + int(i)) for i in tokens(1, 480)[0]))
    return str(path)


def trained(model, **args):
    with session(model) as found:
        return FeatureMaps(**{**SMALL, **args}).run(found)


@pytest.mark.parametrize("features", ["hedgehog", *(pytest.param(name, marks=pytest.mark.slow) for name in MAPS[1:])])
def test_training_brings_outputs_nearer_on_text_that_it_has_not_seen(features, sweep, run):
    """A map that learns nothing, or only its own windows, would be called trained."""
    args = f"{{features: {features}, tokens: 512, window: 64, sinks: 2, exact: 8, epochs: 6}}"
    records, _ = run(sweep(f"method: full\ntask: {{feature_maps: {args}}}\n"))
    (found,) = [record.metrics for record in records.values()]
    assert found["error_after"] < 0.95 * min(found["error_before"], found["error_dropped"])


@pytest.mark.parametrize("features", MAPS)
def test_the_base_model_is_frozen(features, corpus, tmp_path):
    """A model that learned along would be another model for every cell after this one."""
    model = make_model()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    outcome = trained(model, features=features, corpus=corpus, epochs=1)
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert all(part.grad is None for part in model.parameters())
    save_file(load(outcome.artifact), tmp_path / "made.safetensors")
    method = LinearResidual(keep=None, rows=8, sinks=2, recent=1.0, features=features, trained={})
    with bind(model, method, artifacts={"trained": tmp_path / "made.safetensors"}):
        assert model(tokens(2, 30)).logits.isfinite().all()


def test_the_error_is_that_of_the_output_written_out(corpus):
    """The loss would be of some other attention than the one that the method computes."""
    task = FeatureMaps(features="hedgehog", sinks=2, exact=6)
    pupil = _MapPupil(task)
    q, k, v = torch.randn(1, 1, 2, 20, 8), torch.randn(1, 1, 20, 8), torch.randn(1, 1, 20, 8)
    lesson = Lesson(Site(0, 1, (0,), 1, 8, lambda x, _: x), q, k, v)
    weights = {name: part + 0.1 * torch.randn_like(part) for name, part in pupil.start(lesson).items()}
    got = pupil.output(weights, lesson)
    for row, head in ((19, 0), (9, 1), (4, 1)):
        total, norm = torch.zeros(8), 0.0
        for j in range(row + 1):
            if j < 2 or j > row - 4:
                weight = float((q[0, 0, head, row] @ k[0, 0, j]).exp())
            else:
                a = q[0, 0, head, row] @ weights["query.matrix"][0] + weights["query.shift"][0, 0]
                b = k[0, 0, j] @ weights["key.matrix"][0] + weights["key.shift"][0, 0]
                weight = float((a.exp() @ b.exp() + (-a).exp() @ (-b).exp()) * weights["scale"][0, 0].exp())
            total, norm = total + weight * v[0, 0, j], norm + weight
        torch.testing.assert_close(got[0, 0, head, row], total / norm, atol=1e-4, rtol=1e-4)


def test_the_method_computes_what_was_trained(corpus, tmp_path):
    """With other weights, heads or scales at inference than in training, all that was learned is lost."""
    model, seen = make_model(), {}
    outcome = trained(model, features="hedgehog", corpus=corpus, epochs=2)
    save_file(load(outcome.artifact), tmp_path / "made.safetensors")
    method = LinearResidual(keep=None, rows=8, sinks=2, recent=1.0, features="hedgehog", trained={})
    task = FeatureMaps(features="hedgehog", sinks=2, exact=8)

    class Spy(LinearResidual):
        def attend(self, q_BHTD, memory, call, ledger):
            out = super().attend(q_BHTD, memory, call, ledger)
            seen[memory.site.layer] = (memory, q_BHTD, out)
            return out

        def write(self, memory, k_BGTD, v_BGTD):
            seen["rows"] = k_BGTD, v_BGTD
            super().write(memory, k_BGTD, v_BGTD)
            memory.told = seen["rows"]

    spy = Spy(**{one.name: getattr(method, one.name) for one in dataclasses.fields(method)})
    with bind(model, spy, artifacts={"trained": tmp_path / "made.safetensors"}, prefill="sparse"):
        model(tokens(1, 40))
    memory, q, out = seen[1]
    k, v = memory.told
    size = 16**-0.25
    lesson = Lesson(memory.site, q.unflatten(1, (2, -1)) * size, k * size, v)
    weights = {n.removeprefix("layer.1."): w for n, w in load(outcome.artifact).items() if n.startswith("layer.1.")}
    torch.testing.assert_close(out, _MapPupil(task).output(weights, lesson).flatten(1, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"features": "elu"}, "elu has nothing to learn"),
        ({"corpus": "prose"}, "would have seen the test"),
        ({"sinks": 64}, "are all sinks"),
    ],
)
def test_what_cannot_be_trained_is_refused(args, words):
    """Text that is measured on, or a map without weights, would give a record that means nothing."""
    with pytest.raises(ValueError, match=words):
        FeatureMaps(**args)


def test_another_models_weights_are_refused(corpus, tmp_path):
    """Weights of other shapes would be read head by head as if they were this model's."""
    outcome = trained(make_model(), features="less", corpus=corpus, epochs=1)
    save_file(load(outcome.artifact), tmp_path / "made.safetensors")
    method = LinearResidual(keep=None, rows=8, features="less", width=4, trained={})
    other = make_model(num_key_value_heads=4)
    with (
        bind(other, method, artifacts={"trained": tmp_path / "made.safetensors"}),
        pytest.raises(ValueError, match="do not fit less"),
    ):
        other(tokens(1, 12))
