"""Steps at fixed places against the ordinary path: the same tokens, logits and ledger, for every method that has them."""

from contextlib import contextmanager

import pytest
import torch
from conftest_models import make_method, make_model, tokens
from engine_cases import ONCE

from lacuna.harness.engine import Engine, Sampled, engine, greedy
from lacuna.harness.lm import LM, Session
from lacuna.harness.ranks import Ranks
from lacuna.harness.world import World
from lacuna.kernels.op import Op
from lacuna.models.audit import overdrawn
from lacuna.models.bind import bind
from lacuna.models.ledger import summary
from lacuna.models.method import Select
from lacuna.models.shard import Shard

STEPS = 9
FULL = [  # a row leaves for each new one, and there is no state
    ("h2o", {"keep": 0.5}),
    ("h2o", {"keep": (0.25, 0.6), "recent": 1}),
    ("h2o", {"rows": 9, "recent": 3}),
    ("h2o", {"bytes": 2000, "recent": 0.25}),
    ("tova", {"keep": 0.5}),
    ("tova", {"rows": 19}),
    ("tova", {"keep": 0.25, "heads": "kv"}),
    ("tova", {"bytes": 2000, "heads": "kv"}),
]
CASES = [
    ("full", {}),
    ("topk", {"keep": 0.25}),
    ("topk", {"rows": 5, "heads": "query"}),
    ("topk", {"keep": 0.25, "rule": "call"}),
    ("loki", {"keep": 0.25, "d": 0.5}),
    ("loki_theta", {"keep": 0.25, "d": 0.5}),
    ("loki_theta", {"keep": 0.25, "d": 0.5, "sdc": "none", "vmc": "none"}),
    ("loki_theta", {"keep": (0.5, 0.25), "d": 0.5}),
    ("streaming_llm", {"sinks": 2, "rows": 16}),
    ("streaming_llm", {"sinks": 2, "rows": 16, "positions": "text"}),
    ("top_theta", {"rows": 4, "sdc": "exact", "vmc": "mean"}),
    ("top_theta", {"rows": 4, "sdc": "exp_threshold"}),
    ("top_theta", {"rows": 4, "placement": "post", "vmc": "mean"}),
    ("pca_attn", {"d": 0.5}),
    ("sparq", {"rows": 9, "r": 0.5}),
    ("sparq", {"keep": (0.5, 0.125), "r": 0.5}),
    ("sparq", {"keep": 0.25, "r": 4, "rest": "none", "budget_rule": "released"}),
    ("linear_residual", {"rows": 9, "sinks": 2}),
    ("linear_residual", {"keep": 0.5, "sinks": 2, "features": "favor", "width": 24}),
    ("linear_residual", {"rows": 9, "sinks": 2, "recent": 1.0, "centre": "mean"}),
    ("ratchetkv", {"rows": 44, "guard": "ratio"}),
    *FULL,
    ("ntk", {"prefix": 12}),
    ("quest", {"keep": 0.5, "page": 4, "skip": 0}),
    ("quest", {"keep": 0.5, "page": 4, "skip": 1, "heads": "query"}),
    ("quest", {"rows": 11, "page": 3, "skip": 0, "heads": "query"}),
    ("quest", {"rows": (9, 13), "page": 5, "skip": 0}),
    ("quest", {"rows": 17, "skip": 1}),
    ("quest", {"bytes": 6000, "page": 2, "skip": 0}),
    ("quest", {"keep": 0.03, "page": 16, "skip": 0}),
    ("quest", {"keep": 0.25, "page": 4}),
    *ONCE,
]
LENGTHS = (30, 24, 19)


@contextmanager
def session_of(model, method, files):
    """A session without a cell: what tasks get from `LM.under`."""
    with bind(model, method, artifacts=files) as binding:
        yield Session(LM(model, None, Shard.whole(), World(Ranks(), "cpu")), method, None, binding)


def texts(lengths=LENGTHS):
    return [tokens(1, n, seed=n)[0].tolist() for n in lengths]


def ordinary(session, pick, steps=STEPS, lengths=LENGTHS):
    """Tokens [B, 1 + steps], the last logits, and the ledger, one step after the other with a growing cache."""
    state = session.prefill(texts(lengths))
    chosen = [pick(state.logits)]
    for _ in range(steps):
        chosen.append(pick(session.step(state, chosen[-1])))
    return torch.stack(chosen, 1), state.logits, session.binding.ledger.sums()


@pytest.mark.parametrize(("groups", "layers"), [(1, "own"), (2, "fused")])
@pytest.mark.parametrize("pick", [greedy, Sampled(1.3)], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("name", "args"), CASES)
def test_steps_at_fixed_places_equal_the_ordinary_path(name, args, pick, groups, layers, basis):
    """What is timed would be another method than what is scored, or its ledger would not be the run's."""
    model, method, files = make_model(num_key_value_heads=groups), make_method(name, args), basis(groups)
    with session_of(model, method, files) as session:
        torch.manual_seed(5)
        want, logits, counted = ordinary(session, pick)
    with session_of(model, method, files) as session:
        torch.manual_seed(5)
        with engine(session, session.prefill(texts()), STEPS + 3, pick, layers) as steps:
            for _ in range(STEPS):
                steps.step()
            assert torch.equal(steps.tokens_BN, want)
            torch.testing.assert_close(steps.logits, logits, atol=2e-5, rtol=1e-4)
            told = session.binding.ledger.sums()
    torch.testing.assert_close(told, counted, atol=1e-6, rtol=1e-12)
    assert summary([told])["decode"]["tokens"] == STEPS * len(LENGTHS)


@pytest.mark.parametrize("args", [{"keep": 0.5, "page": 4, "skip": 1}, {"rows": 9, "page": 5, "skip": 0}])
def test_pages_that_begin_are_charged_when_they_do(args, basis):
    """Room for boxes would be charged before a page begins, or a box that steps wrote not at all."""
    model, method = make_model(), make_method("quest", args)
    counts = []
    with session_of(model, method, basis()) as session:
        state = session.prefill(texts())
        token = greedy(state.logits)
        for _ in range(STEPS):
            token = greedy(session.step(state, token))
            counts.append(session.binding.ledger.sums())
    with session_of(model, method, basis()) as session, engine(session, session.prefill(texts()), STEPS) as steps:
        for counted in counts:
            steps.step()
            torch.testing.assert_close(session.binding.ledger.sums(), counted, atol=1e-6, rtol=1e-12)
    assert len({float(counted[1, 2, 0]) for counted in counts}) == STEPS


ASKING = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "nonzero", "cpu", "numpy")


@pytest.mark.parametrize(("name", "args"), CASES)
def test_a_step_asks_the_host_nothing(name, args, basis, monkeypatch):
    """A step that reads a value on the host, or whose shapes depend on one, cannot be captured into a CUDA graph."""
    inside = Op.__call__

    def outside_of_ops(self, *arguments):  # an eager twin may ask: on a GPU it is not the one that runs
        with pytest.MonkeyPatch.context() as free:
            for asking, own in before.items():
                free.setattr(torch.Tensor, asking, own)
            return inside(self, *arguments)

    def refuse(*_, **__):
        raise AssertionError("the host was asked")

    before = {asking: getattr(torch.Tensor, asking) for asking in ASKING}
    with (
        session_of(make_model(), make_method(name, args), basis()) as session,
        engine(session, session.prefill(texts()), 4) as steps,
    ):
        steps.step()
        monkeypatch.setattr(Op, "__call__", outside_of_ops)
        for asking in ASKING:
            monkeypatch.setattr(torch.Tensor, asking, refuse)
        steps.step()
        shapes = {id(x): x.data_ptr() for x in static_tensors(steps)}
        steps.step()
        again = {id(x): x.data_ptr() for x in static_tensors(steps)}
        monkeypatch.undo()
        assert again == shapes


@pytest.mark.parametrize(("name", "args"), [("full", {}), ("streaming_llm", {"sinks": 2, "rows": 16})])
def test_a_mask_that_the_model_makes_does_not_reach_a_step(name, args, basis, monkeypatch):
    """While a graph is captured the model makes a mask of the length of then: later steps would read past its end."""
    with session_of(make_model(), make_method(name, args), basis()) as session:
        want, logits, _ = ordinary(session, greedy)
    with session_of(make_model(), make_method(name, args), basis()) as session:
        state = session.prefill(texts())
        monkeypatch.setattr("transformers.masking_utils._ignore_causal_mask_sdpa", lambda *_, **__: False)
        with engine(session, state, STEPS) as steps:
            for _ in range(STEPS):
                steps.step()
            assert torch.equal(steps.tokens_BN, want)
            torch.testing.assert_close(steps.logits, logits, atol=2e-5, rtol=1e-4)


def static_tensors(steps):
    """What a replay would read where the step before it wrote."""
    memories = [layer.memory for layer in steps.cache.layers]
    for memory in memories:
        yield from (memory.keys._buffer, memory.values._buffer, *(a._buffer for a in memory.aux.values()))
        yield from memory.extra.values()
        yield from () if memory.columns is None else (memory.columns,)
    yield from (steps.token, steps.logits, steps.ledger.common, steps.ledger.layers, steps.ledger.most)


def test_steps_end_where_room_ends(basis):
    """A step too many would write past the end of the caches."""
    with session_of(make_model(), make_method("full", {}), basis()) as session:
        with engine(session, session.prefill(texts()), 2) as steps:
            steps.step()
            steps.step()
            with pytest.raises(ValueError, match="room for 2 steps"):
                steps.step()
        want, _, _ = ordinary(session, greedy, 3)
        assert want.shape == (3, 4)


@pytest.mark.parametrize(
    ("name", "args", "told"),
    [
        ("h2o", {"keep": 0.5, "positions": "cache"}, "turns all keys anew"),
        ("h2o", {"rows": 24}, "longer than rows = 24"),
        ("tova", {"rows": 30}, "longer than rows = 30"),
        ("streaming_llm", {}, "longer than rows = 1024"),
        ("linear_residual", {"rows": 25}, "longer than rows = 25"),
        ("ratchetkv", {"rows": 44, "decode": "grow"}, "change from step to step"),
        ("ntk", {"prefix": 20}, "longer than prefix = 20"),
    ],
)
def test_what_cannot_be_captured_is_refused(name, args, told, basis):
    """A method whose steps differ in shape would be captured once and then be wrong at every replay."""
    with session_of(make_model(), make_method(name, args), basis()) as session:
        state = session.prefill(texts())
        with pytest.raises(ValueError, match=told):
            Engine(session, state, 4)


def test_a_sliding_window_is_refused(basis):
    """Rows that have left the window would be attended: the mask that hides them is made on the host."""
    with session_of(make_model("mistral"), make_method("full", {}), basis()) as session:
        state = session.prefill(texts())
        with pytest.raises(ValueError, match="sliding window"):
            Engine(session, state, 4)


def test_a_cpu_captures_nothing(basis):
    """A time of eager steps would be told as that of a graph."""
    with (
        session_of(make_model(), make_method("full", {}), basis()) as session,
        engine(session, session.prefill(texts()), 9) as steps,
        pytest.raises(ValueError, match="CUDA"),
    ):
        steps.capture()


def test_a_temperature_is_positive():
    """A temperature of zero would divide by it and draw NaN."""
    with pytest.raises(ValueError, match="above 0"):
        Sampled(0.0)
    logits = torch.tensor([[0.0, 1.0, 3.0]]).repeat(4000, 1)
    torch.manual_seed(0)
    got = torch.bincount(Sampled(2.0)(logits), minlength=3) / 4000
    torch.testing.assert_close(got, (logits[0] / 2).softmax(-1), atol=0.03, rtol=0)


def test_steps_are_held_against_their_budget(basis, monkeypatch):
    """A captured step that attends more rows than were asked for would be timed, and told, as if it kept its budget."""
    method, files = make_method("topk", {"rows": 5}), basis()

    def told():
        with (
            session_of(make_model(), method, files) as session,
            engine(session, session.prefill(texts()), 4) as steps,
        ):
            steps.step()
            steps.step()
            return overdrawn(summary([session.binding.ledger.sums()]))

    assert told() == ""
    budget = Select._budget_B
    monkeypatch.setattr(Select, "_budget_B", lambda self, call, memory: budget(self, call, memory) + 2)
    monkeypatch.setattr("lacuna.models.method.widest", lambda *_: 7)
    assert "by 2 rows attended" in told()


def test_layers_of_another_shape_are_not_fused(basis):
    """A norm of the queries, or another MLP, would silently be left out."""
    with (
        session_of(make_model("qwen3"), make_method("full", {}), basis()) as session,
        engine(session, session.prefill(texts()), 4, layers="fused") as steps,
        pytest.raises(ValueError, match="q_norm"),
    ):
        steps.step()


def test_fused_layers_leave_the_model_as_it_was(basis):
    """What is measured next would run through layers of which nobody said so."""
    model = make_model()
    with (
        session_of(model, make_method("full", {}), basis()) as session,
        engine(session, session.prefill(texts()), 4, layers="fused") as steps,
    ):
        steps.step()
    assert not any("forward" in vars(layer) for layer in model.model.layers)
