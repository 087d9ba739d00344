"""Steps at fixed places after a prompt was cut once: the cache grows, and each head's text begins where the cut left it."""

import pytest
import torch
from conftest_models import make_method, make_model
from engine_cases import ONCE
from test_engine import STEPS, ordinary, session_of, texts

from lacuna.harness.engine import engine, greedy
from lacuna.models.audit import overdrawn
from lacuna.models.ledger import summary
from lacuna.models.methods.pyramidkv import PyramidKv


@pytest.mark.parametrize(("name", "args"), [ONCE[0], ONCE[11]])
def test_a_step_of_a_growing_cache_made_twice_counts_once(name, args, basis):
    """The graph would be held against a step that sees a row more, or the text would go on as if it were one longer."""
    model, method = make_model(num_key_value_heads=2), make_method(name, args)
    with session_of(model, method, basis(2)) as session:
        want, logits, counted = ordinary(session, greedy)
        state = session.prefill(texts())
        for token in want[:, :-1].T:
            session.step(state, token)
        held = [layer.memory.text_rows_BN(session.binding.first) for layer in state.cache.layers]
    with (
        session_of(model, method, basis(2)) as session,
        engine(session, session.prefill(texts()), STEPS) as steps,
    ):
        for _ in range(STEPS - 1):
            steps.step()
        assert steps.agrees()
        for layer, rows_BN in zip(steps.cache.layers, held, strict=True):
            growth = layer.memory.growth
            assert torch.equal(growth.rows_BN.expand_as(rows_BN), rows_BN)
            assert torch.equal((growth.hi - growth.lo).view(len(rows_BN), -1).expand_as(rows_BN), rows_BN.int())
        assert torch.equal(steps.tokens_BN, want)
        torch.testing.assert_close(steps.logits, logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(session.binding.ledger.sums(), counted, atol=1e-6, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "args", "reached"),
    [
        (*ONCE[1], lambda low, top: low.copies == top.copies == 2),
        (*ONCE[5], lambda low, top: low.columns.shape[2] > top.columns.shape[2]),
        (*ONCE[9], lambda low, _: holes(low)[0, 0] != holes(low)[0, 1]),
        (*ONCE[14], lambda low, top: 30 + STEPS <= low.columns.shape[2] > top.columns.shape[2]),
    ],
)
def test_cases_of_one_cut_reach_what_they_are_for(name, args, reached, basis):
    """Heads that hold different rows, or layers of which one is whole, would be steps that nobody made."""
    with session_of(make_model(), make_method(name, args), basis()) as session:
        with engine(session, session.prefill(texts()), STEPS) as steps:
            low, top = (layer.memory for layer in steps.cache.layers)
        assert reached(low, top)


@pytest.mark.parametrize(
    ("args", "whole"), [({"rows": 64}, [True, True]), ({"rows": (9, 40), "heads": "query"}, [False, True])]
)
def test_a_prompt_that_fits_its_budget_is_a_dense_cache(args, whole, basis):
    """Layers that hold heads once beside layers that hold copies would be added up as if they held the same."""
    method, files = make_method("snapkv", {"window": 4, "kernel": 3, **args}), basis()
    with session_of(make_model(), method, files) as session:
        want, logits, counted = ordinary(session, greedy, STEPS, (30,))
    with (
        session_of(make_model(), method, files) as session,
        engine(session, session.prefill(texts((30,))), STEPS, layers="fused") as steps,
    ):
        for _ in range(STEPS):
            steps.step()
        assert [layer.memory.columns is None for layer in steps.cache.layers] == whole
        assert torch.equal(steps.tokens_BN, want)
        torch.testing.assert_close(steps.logits, logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(session.binding.ledger.sums(), counted, atol=1e-6, rtol=1e-12)


def holes(memory):
    """Of each head, [B, N]."""
    return (memory.columns < 0).sum(-1)


def test_a_budget_of_all_layers_is_held_against_their_sum(basis, monkeypatch):
    """A pyramid's lower layers would each be told to hold too much, or a pyramid that is too large would pass."""
    method, files = make_method("pyramidkv", {"rows": 8, "window": 4, "kernel": 3}), basis()

    def told(steps):
        with session_of(make_model(), method, files) as session:
            ordinary(session, greedy, steps)
            want = overdrawn(summary([session.binding.ledger.sums()]))
        with session_of(make_model(), method, files) as session:
            with engine(session, session.prefill(texts()), steps) as made:
                for _ in range(steps):
                    made.step()
            assert overdrawn(summary([session.binding.ledger.sums()])) == want
        return want

    assert told(3) == ""
    exact = PyramidKv._exact
    monkeypatch.setattr(PyramidKv, "_exact", lambda self, *given: exact(self, *given) + 1)
    assert "by 2 rows attended and 2 rows held" in told(3)
