"""A full cache at fixed places: the new row takes the place of the one that the ordinary path would drop."""

import pytest
import torch
from conftest_models import make_method, make_model, tokens
from test_engine import FULL, STEPS, ordinary, session_of, texts

from lacuna.harness.engine import Engine, engine, greedy


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("name", "args"), FULL)
def test_steps_of_a_full_cache_hold_the_rows_of_the_ordinary_path(name, args, groups, basis):
    """Another row would leave than the method says, and the few tokens that are looked at might not show it."""
    model, method = make_model(num_key_value_heads=groups), make_method(name, args)
    with session_of(model, method, basis(groups)) as session:
        state = session.prefill(texts())
        for token in ids_of_steps():
            session.step(state, token)
        want = rows_of(state.cache)
    with session_of(model, method, basis(groups)) as session:
        ids = iter(ids_of_steps())
        with engine(session, session.prefill(texts()), 30, lambda _: next(ids, torch.zeros(3).long())) as steps:
            for _ in ids_of_steps():
                steps.step()
        memories = [layer.memory for layer in steps.cache.layers]
        assert all(torch.equal(*pair) for pair in zip(rows_of(steps.cache), want, strict=True))
    if args.get("heads", name) == "tova":  # the heads of a layer choose together
        assert all(bool((m.columns == m.columns[:, :1]).all()) for m in memories)
        assert all(bool((m.aux["mark"].view == m.aux["mark"].view[:, :1]).all()) for m in memories)


def ids_of_steps():
    """More tokens than any of the caches has rows."""
    return list(tokens(3, 24, seed=8).T)


def rows_of(cache):
    """Token numbers that each layer holds, in order of age."""
    return [layer.memory.columns.sort(-1).values for layer in cache.layers]


@pytest.mark.parametrize(("name", "args"), [("h2o", {"rows": 9}), ("tova", {"rows": 9})])
def test_a_step_of_a_full_cache_made_twice_counts_once(name, args, basis):
    """A row too many would have left a cache that is compared, and what is timed after that is another text."""
    model, method = make_model(num_key_value_heads=2), make_method(name, args)
    with session_of(model, method, basis(2)) as session:
        want, logits, _ = ordinary(session, greedy)
    with (
        session_of(model, method, basis(2)) as session,
        engine(session, session.prefill(texts()), STEPS + 3) as steps,
    ):
        for _ in range(STEPS - 1):
            steps.step()
        assert steps.agrees()
        assert torch.equal(steps.tokens_BN, want)
        torch.testing.assert_close(steps.logits, logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "args"), [("h2o", {"rows": 30}), ("tova", {"keep": 1.0})])
def test_a_cache_that_has_dropped_nothing_is_refused(name, args, basis):
    """Its rows have no numbers of their own, so none could be told to be the oldest."""
    with session_of(make_model(), make_method(name, args), basis()) as session:
        state = session.prefill([tokens(1, 30)[0].tolist()] * 2)
        with pytest.raises(ValueError, match="the prompt must be longer"):
            Engine(session, state, 4)
