"""Steps of a full window at fixed places: what is worked out once for all layers gives what each layer would.

Shapes: B texts, V vocabulary.
"""

import pytest
import torch
from conftest_models import LAYERS, make_method, make_model, tokens
from test_engine import session_of
from transformers.models.llama import modeling_llama

from lacuna.harness.engine import engine, greedy
from lacuna.models import rotation
from lacuna.models.audit import overdrawn
from lacuna.models.ledger import summary
from lacuna.models.rotation import Rotation
from lacuna.models.sliding import Sinks

STEPS = 45  # the ring of the widest window is written over more than twice
RAGGED, SHORT = (30, 24, 19), (30, 21, 2, 1)
CASES = [
    ({"rows": 16, "sinks": 3}, RAGGED),
    ({"rows": 16, "sinks": 3, "positions": "text"}, RAGGED),
    ({"rows": 16, "sinks": 4}, SHORT),
    ({"rows": 16, "sinks": 4, "positions": "text"}, SHORT),
    ({"rows": 16, "sinks": 0}, RAGGED),
    ({"rows": (16, 9), "sinks": 3}, RAGGED),
    ({"keep": 0.4, "sinks": 3}, RAGGED),
    ({"keep": 0.4, "sinks": 4, "positions": "text"}, SHORT),
    ({"keep": (0.3, 0.5), "sinks": 4}, SHORT),
    ({"bytes": 4000, "sinks": 2}, RAGGED),
]


def texts(lengths):
    return [tokens(1, n, seed=n)[0].tolist() for n in lengths]


def dynamic(model, method, lengths, files):
    """Logits [STEPS, B, V] of a growing cache, what was fed, numbers of the rows held, and the ledger's sums."""
    with session_of(model, method, files) as session:
        state = session.prefill(texts(lengths))
        fed, found = [greedy(state.logits)], []
        for _ in range(STEPS):
            found.append(session.step(state, fed[-1]).clone())
            fed.append(greedy(found[-1]))
        held = [memory.columns.clone() for memory in session.binding.memories(state.cache)]
        return torch.stack(found), torch.stack(fed, 1), held, session.binding.ledger.sums()


def pinned(model, method, lengths, files, layers, watch=None):
    """The same at fixed places."""
    with (
        session_of(model, method, files) as session,
        engine(session, session.prefill(texts(lengths)), STEPS, layers=layers) as steps,
    ):
        steps.ledger.watch = watch
        found = []
        for _ in range(STEPS):
            steps.step()
            found.append(steps.logits.clone())
        held = [memory.columns.clone() for memory in session.binding.memories(steps.cache)]
        return torch.stack(found), steps.tokens_BN, held, session.binding.ledger.sums()


def same(got, want):
    """Logits, tokens, rows held in any order (holes among them), and counts."""
    torch.testing.assert_close(got[0], want[0], atol=2e-5, rtol=1e-4)
    assert torch.equal(got[1], want[1])
    for mine, theirs in zip(got[2], want[2], strict=True):
        assert torch.equal(mine.sort(-1).values, theirs.sort(-1).values)
    torch.testing.assert_close(got[3], want[3], atol=1e-6, rtol=1e-12)
    assert overdrawn(summary([got[3]])) == ""


@pytest.mark.parametrize("layers", ["own", "fused"])
@pytest.mark.parametrize(("args", "lengths"), CASES, ids=str)
def test_a_pinned_window_is_the_window_step_for_step(args, lengths, layers, basis):
    """A row would be given up that is attended still, a sink stand elsewhere, or another layer's rows be counted."""
    model, method = make_model(), make_method("streaming_llm", args)
    same(pinned(model, method, lengths, basis(), layers), dynamic(model, method, lengths, basis()))


@pytest.mark.parametrize("layers", ["own", "fused"])
@pytest.mark.parametrize("positions", ["cache", "text"])
@pytest.mark.parametrize(
    ("budget", "lengths"), [({"rows": 16}, RAGGED), ({"rows": 16}, SHORT), ({"keep": 0.7}, (30, 21, 3))], ids=str
)
def test_a_pinned_window_is_the_kept_text_alone(budget, lengths, positions, layers, basis):
    """The paper's definition: a model of one layer would see other tokens than sinks and window, or see them elsewhere."""
    model = make_model(num_hidden_layers=1)
    method = make_method("streaming_llm", {**budget, "sinks": 4, "positions": positions})
    logits, fed, *_ = pinned(model, method, lengths, basis(layers=1), layers)
    for b, text in enumerate(texts(lengths)):
        rows = budget.get("rows", int(0.7 * len(text)))
        sinks = min(4, rows - 1)
        for step in range(STEPS):
            ids = torch.tensor([text + fed[b, : step + 1].tolist()])
            last = ids.shape[1]
            kept = torch.tensor([i for i in range(last) if i < sinks or i >= last - (rows - sinks)])
            where = kept if positions == "text" else torch.arange(len(kept))
            want = model(ids[:, kept], position_ids=where[None]).logits[0, -1]
            torch.testing.assert_close(logits[step, b], want, atol=2e-5, rtol=1e-4)


def test_sinks_are_found_where_they_lie():
    """A sink that has not come, or that a budget has no room for, would be written over another row."""
    place = torch.tensor([[-2, 2, 0, 5, 1], [-1, 0, 1, 2, 3], [1, 3, 9, 8, 7]])
    found = Sinks.of(place, torch.tensor([[3], [1], [3]]), torch.tensor([[6], [0], [2]]), 3, Rotation(make_model()))
    assert found.place_BE.tolist() == [[2, 4, 1], [1, -1, -1], [-1, 0, -1]]


@pytest.mark.parametrize("positions", ["cache", "text"])
def test_who_watches_a_pinned_window_changes_nothing(positions, basis):
    """An analysis would be told nothing of the rows chosen, or what it looks at would be another step."""
    model, method = make_model(), make_method("streaming_llm", {"rows": 16, "sinks": 3, "positions": positions})
    told = []
    got = pinned(model, method, RAGGED, basis(), "fused", lambda *_: told.append(_[3].sum(-1).flatten().tolist()))
    same(got, dynamic(model, method, RAGGED, basis()))
    assert len(told) == STEPS * LAYERS
    assert told[-1] == [16] * len(RAGGED)


def test_other_pairs_are_turned_by_the_models_own_rotation(basis, monkeypatch):
    """Sinks of a model that pairs neighbours would be turned as if it paired halves, or written where none is."""
    # as if it did not pair halves; its rotation is asked, and says the same
    monkeypatch.setattr(rotation, "pairs_halves", lambda _: False)
    monkeypatch.setattr(rotation.PUT_TURNED.__class__, "__call__", refusing(rotation.PUT_TURNED))
    asked, own = [], modeling_llama.apply_rotary_pos_emb
    model, method = make_model(), make_method("streaming_llm", {"rows": 16, "sinks": 4})
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda *_: asked.append(_[0].shape[2]) or own(*_))
    got = pinned(model, method, SHORT, basis(), "fused")
    assert asked.count(4) == STEPS * LAYERS
    monkeypatch.undo()
    same(got, dynamic(model, method, SHORT, basis()))


def refusing(op):
    """Calls of all operations but one."""
    call = type(op).__call__

    def checked(self, *arguments):
        assert self.name != op.name
        return call(self, *arguments)

    return checked


@pytest.mark.parametrize(("rows", "shared"), [(16, 1), ((16, 9), 2), ((9, 16, 16), 2)])
def test_layers_of_one_budget_share_their_numbers(rows, shared, basis):
    """Each layer would note the same numbers anew, or one of another budget take its neighbour's."""
    model = make_model(num_hidden_layers=3)
    with (
        session_of(model, make_method("streaming_llm", {"rows": rows, "sinks": 2}), basis(layers=3)) as session,
        engine(session, session.prefill(texts(RAGGED)), 4) as steps,
    ):
        steps.step()
        first = [memory.columns for memory in session.binding.memories(steps.cache)]
        assert len({part.data_ptr() for part in first}) == shared
        steps.step()
        again = [memory.columns for memory in session.binding.memories(steps.cache)]
    assert [part.data_ptr() for part in again] == [part.data_ptr() for part in first]
