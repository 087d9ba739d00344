"""SparQ's steps at fixed places, whose row is written in one launch, against the paper's formula and the ordinary path.

Shapes: B texts, J query heads of a key/value head, S rows that a text sees, D head dimension.
"""

import math
from contextlib import contextmanager

import pytest
import torch
from conftest_models import DIM, HEADS, make_method, make_model, tokens
from test_engine import session_of

from lacuna.harness.engine import engine
from lacuna.kernels.op import watched
from lacuna.models import running
from lacuna.models.methods.sparq import Sparq

LENGTHS = (30, 24, 3)  # the shorter texts are padded, and one has fewer rows than are wanted
ROWS, COMPONENTS, LOCAL = 8, 5, 3
MORE = {"exact": 0, "released": 1}
groups_of_any_size = pytest.mark.parametrize("groups", [1, 2, 4])
any_rest = pytest.mark.parametrize(
    ("rest", "rule"), [("mean", "exact"), ("none", "exact"), ("mean", "released"), ("none", "released")]
)


def sparq(rest="mean", rule="exact"):
    given = {"rows": ROWS, "r": COMPONENTS, "local": LOCAL, "rest": rest, "budget_rule": rule}
    return make_method("sparq", given)


def by_hand(q_JD, k_SD, v_SD, rest, more):
    """Algorithm 1 for the heads of one key/value head and the rows that one text sees, in float64."""
    lead = q_JD.abs().sum(0).topk(COMPONENTS).indices
    held = q_JD[:, lead].abs().sum(1) / q_JD.abs().sum(1)
    weight_JS = (q_JD[:, lead] @ k_SD[:, lead].T / (DIM * held).sqrt()[:, None]).softmax(1)
    rank_S = weight_JS.sum(0)
    rank_S[-LOCAL - more :] = math.inf
    kept = rank_S.topk(min(ROWS + more, len(rank_S))).indices
    exact_JD = (q_JD @ k_SD[kept].T / math.sqrt(DIM)).softmax(1) @ v_SD[kept]
    inside_J1 = weight_JS[:, kept].sum(1, keepdim=True)
    return inside_J1 * exact_JD + (1 - inside_J1) * v_SD.mean(0) if rest == "mean" else exact_JD


@contextmanager
def told(monkeypatch):
    """What each attention to a single row was asked, could see, and answered."""
    seen, attend = [], Sparq.attend

    def noted(self, q_BHTD, memory, call, ledger):
        out = attend(self, q_BHTD, memory, call, ledger)
        if call.new == 1:
            end = int(call.seen)
            held = (memory.keys.view[:, :, :end].clone(), memory.values.view[:, :, :end].clone())
            seen.append((q_BHTD.clone(), *held, call.first.tolist(), out.clone()))
        return out

    with monkeypatch.context() as patch:
        patch.setattr(Sparq, "attend", noted)
        yield seen


def texts():
    return [tokens(1, n, seed=n)[0].tolist() for n in LENGTHS]


def check_by_hand(seen, rest, rule):
    for q_BHTD, k_BGSD, v_BGSD, first, out in seen:
        group = HEADS // k_BGSD.shape[1]
        for b, lo in enumerate(first):
            for g in range(k_BGSD.shape[1]):
                heads = slice(g * group, (g + 1) * group)
                q, k, v = q_BHTD[b, heads, 0], k_BGSD[b, g, lo:], v_BGSD[b, g, lo:]
                want = by_hand(q.double(), k.double(), v.double(), rest, MORE[rule])
                torch.testing.assert_close(out[b, heads, 0].double(), want, atol=2e-5, rtol=1e-4)


@any_rest
@groups_of_any_size
@pytest.mark.parametrize("layers", ["own", "fused"])
def test_steps_are_the_papers(layers, groups, rest, rule, monkeypatch):
    """A step would choose by a copy that lacks its row, weigh by other rows than it chose, or count padding in a mean."""
    with (
        told(monkeypatch) as seen,
        session_of(make_model(num_key_value_heads=groups), sparq(rest, rule), {}) as session,
        engine(session, session.prefill(texts()), 8, layers=layers) as steps,
    ):
        for _ in range(8):
            steps.step()
    assert len(seen) == 8 * 2
    check_by_hand(seen, rest, rule)


@any_rest
@groups_of_any_size
def test_ordinary_rows_are_the_papers(groups, rest, rule, monkeypatch):
    """The same of a cache that grows: what is scored would be another method than the paper's."""
    with (
        told(monkeypatch) as seen,
        session_of(make_model(num_key_value_heads=groups), sparq(rest, rule), {}) as session,
    ):
        state = session.prefill(texts())
        for _ in range(4):
            session.step(state, state.logits.argmax(-1))
    assert len(seen) == 4 * 2
    check_by_hand(seen, rest, rule)


@any_rest
@groups_of_any_size
def test_many_steps_equal_the_ordinary_path(groups, rest, rule):
    """A sum or a copy that misses rows would drift away from what is scored, a little more with every step."""
    count, model = 48, make_model(num_key_value_heads=groups)
    with session_of(model, sparq(rest, rule), {}) as session:
        state = session.prefill(texts())
        want, chosen = [state.logits], [state.logits.argmax(-1)]
        for _ in range(count):
            want.append(session.step(state, chosen[-1]))
            chosen.append(want[-1].argmax(-1))
    with (
        session_of(model, sparq(rest, rule), {}) as session,
        engine(session, session.prefill(texts()), count, layers="fused") as steps,
    ):
        for expected in want[1:]:
            steps.step()
            torch.testing.assert_close(steps.logits, expected, atol=5e-5, rtol=1e-4)
        assert torch.equal(steps.tokens_BN, torch.stack(chosen, 1))
        for layer in steps.cache.layers:
            memory = layer.memory
            assert torch.equal(memory.aux["by_component"].view, memory.keys.view)
            if rest == "mean":
                values = memory.values.view.double()
                total = torch.stack([values[b, :, lo:].sum(1) for b, lo in enumerate(memory.first.tolist())])
                torch.testing.assert_close(memory.extra[running.SUM][:, :, 0].double(), total, atol=1e-4, rtol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU steps are made by kernels: test_engine_cuda.py")
@groups_of_any_size
def test_kernels_make_the_same_steps(groups, monkeypatch):
    """The twins agree each alone, and yet a kernel gets what its eager twin takes and it does not."""
    with (
        told(monkeypatch) as seen,
        session_of(make_model(num_key_value_heads=groups), sparq(), {}) as session,
        engine(session, session.prefill(texts()), 2, layers="fused") as steps,
        watched(lambda op, arguments, _: op.fused(*arguments)),
    ):
        steps.step()
        steps.step()
    assert len(seen) == 2 * 2
    check_by_hand(seen, "mean", "exact")
