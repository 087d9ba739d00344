"""What is wrong with an engine, or before one, is told and leaves no trace."""

import pytest
import torch
from conftest_models import make_method, make_model, tokens
from test_engine import STEPS, ordinary, session_of, texts

from lacuna.harness.engine import Engine, engine, greedy


def test_a_refused_engine_leaves_the_session_as_it_was(basis):
    """A clock that no cache has would be taken for a pinned one, and padding be forgotten."""
    with session_of(make_model(), make_method("h2o", {"rows": 28}), basis()) as session:
        state = session.prefill(texts())
        with pytest.raises(ValueError, match="longer than rows = 28"):
            Engine(session, state, 4)
        assert session.binding.clock is None
        session.step(session.blank(2), torch.tensor([3, 4]))


@pytest.mark.parametrize("name", ["snapkv", "h2o", "sparq", "streaming_llm"])
def test_two_caches_of_one_prompt_have_places_of_their_own(name, basis):
    """An engine on a copy of a cache would write into the other's places, or go by what was noted for the other."""
    args = {"rows": 9} | ({"window": 4} if name == "snapkv" else {})
    with session_of(make_model(), make_method(name, args), basis()) as session:
        state = session.prefill(texts())
        twin, found = state.fork(torch.arange(3)), []
        for one in (state, twin):
            with engine(session, one, 4) as steps:
                for _ in range(4):
                    steps.step()
                found.append(steps.tokens_BN.clone())
        assert torch.equal(*found)
        for mine, other in zip(state.cache.layers, twin.cache.layers, strict=True):
            for part in ("columns", "extra", "given"):
                assert addresses(getattr(mine.memory, part)).isdisjoint(addresses(getattr(other.memory, part)))


def addresses(part):
    """Where tensors lie."""
    parts = part.values() if isinstance(part, dict) else [] if part is None else [part]
    return {t.data_ptr() for t in parts if torch.is_tensor(t) and t.numel() > 1}


def test_a_window_that_grows_with_its_text_is_refused(basis):
    """The first step would look for a share of a prompt that never was."""
    with session_of(make_model(), make_method("streaming_llm", {"keep": 0.5}), basis()) as session:
        state = session.blank(2)
        for row in tokens(12, 2):
            session.step(state, row)
        with pytest.raises(ValueError, match="captured after a prompt"):
            Engine(session, state, 4)


def test_a_step_is_made_twice_between_others_only(basis):
    """Made twice before any other, it would count twice; behind the last there is no room for its row."""
    with (
        session_of(make_model(), make_method("full", {}), basis()) as session,
        engine(session, session.prefill(texts()), 2) as steps,
    ):
        with pytest.raises(ValueError, match="0 of 2"):
            steps.agrees()
        steps.step()
        assert steps.agrees()
        with pytest.raises(ValueError, match="2 of 2"):
            steps.agrees()


@pytest.mark.parametrize("layers", ["own", "fused"])
@pytest.mark.parametrize(
    ("name", "args"), [("topk", {"keep": 0.25}), ("evict_then_select", {"rows": 12, "read": 0.5, "evict": "keydiff"})]
)
def test_each_layer_scales_its_own_scores(name, args, layers, basis):
    """What layers share of a step would hold the scale of the first of them."""
    model = make_model()
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.scaling /= 1 + 3 * place
    with session_of(model, make_method(name, args), basis()) as session:
        want, logits, _ = ordinary(session, greedy, STEPS)
    method = make_method(name, args)
    with session_of(model, method, basis()) as one, engine(one, one.prefill(texts()), STEPS, greedy, layers) as steps:
        for _ in range(STEPS):
            steps.step()
        assert torch.equal(steps.tokens_BN, want)
        torch.testing.assert_close(steps.logits, logits)


@pytest.mark.parametrize(
    ("name", "args"),
    [("full", {}), ("loki", {"keep": 0.5}), ("snapkv", {"rows": 9, "window": 4}), ("sparq", {"keep": 0.5})],
)
@pytest.mark.parametrize("steps", [1, 5, 18])
def test_rows_that_a_step_reads_are_aligned(name, args, steps, basis):
    """Rows of scores would begin anywhere, be loaded four bytes at a time, and a choice take twice as long."""
    with session_of(make_model(), make_method(name, args), basis()) as session:
        state = session.prefill(texts())
        held = [layer.memory.keys.view.shape[2] for layer in state.cache.layers]
        with engine(session, state, steps):
            rows = [layer.memory.keys.view.shape[2] for layer in state.cache.layers]
            beside = [part.view.shape[2] for layer in state.cache.layers for part in layer.memory.aux.values()]
            assert beside == (rows if name in ("loki", "sparq") else [])
    assert rows == [16 * -(-(before + steps) // 16) for before in held]
