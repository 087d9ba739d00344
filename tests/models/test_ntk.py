"""NTK-Attention's state and RatchetKV against their formulas, row by row in float64."""

import math

import pytest
import torch
from conftest_models import DIM, make_method
from evict_reference import attended, draw, feed, fresh, held
from safetensors.torch import save_file

from lacuna.models.methods.ntk import Ntk
from lacuna.models.methods.ratchetkv import RatchetKv

PREFIX, STATE = 6, 2 * DIM + 1


@pytest.fixture(params=["kv", "query"])
def state(request, tmp_path):
    """A method, its tensors and where they lie."""
    sets = {"kv": 2, "query": 4}[request.param]
    generator = torch.Generator().manual_seed(5)
    parts = {"values": torch.randn(sets, DIM, DIM, generator=generator), "norms": torch.randn(sets, DIM, generator=generator),
             "scale": torch.randn(sets, 1, generator=generator)}  # fmt: skip
    save_file({f"layer.0.{name}": part for name, part in parts.items()}, tmp_path / "state.safetensors")
    return Ntk(prefix=PREFIX, heads=request.param), parts, {"state": tmp_path / "state.safetensors"}


def elu_plus_one(x):
    y = x.double() / DIM**0.25
    return torch.where(y > 0, y + 1, y.exp())


def joined(q, k, v, rows, values, norms):
    """(sum of exp(s) v + phi(q) Z) / (sum of exp(s) + phi(q) |k|) for one query."""
    weights = (k[rows].double() @ q.double() / math.sqrt(DIM)).exp()
    phi = elu_plus_one(q)
    return (weights @ v[rows].double() + phi @ values) / (weights.sum() + phi @ norms)


def check(got, q, k, v, b, h, row, parts, at):
    share = 4 // len(parts["norms"])
    factor = parts["scale"][h // share].double().exp()
    values, norms = parts["values"][h // share].double() * factor, parts["norms"][h // share].double().abs() * factor
    want = joined(q[b, h, row], k[b, h // 2], v[b, h // 2], list(range(PREFIX, row + 1)), values, norms)
    torch.testing.assert_close(got[b, h, at].double(), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt", [10, 3])
def test_the_state_stands_for_the_prefix(state, prompt):
    """Another formula than NTK-Attention's would be reported under its name; rows of the prefix see only each other."""
    method, parts, artifacts = state
    q, k, v = draw(20)
    memory = fresh(method, artifacts=artifacts)
    feed(method, memory, q[:, :, :prompt], k[:, :, :prompt], v[:, :, :prompt], "prefill")
    got, ledger = feed(method, memory, q[:, :, prompt:], k[:, :, prompt:], v[:, :, prompt:], "decode")
    for b, h, row in ((0, 0, 10), (1, 3, 19), (1, 1, 12)):
        check(got, q, k, v, b, h, row, parts, row - prompt)
    if prompt < PREFIX:
        torch.testing.assert_close(
            got[0, 1, 2].double(), attended(q[0, 1, 5], k, v, 0, 1, range(6)), atol=1e-4, rtol=1e-4
        )
    assert held(memory)[0][0] == set(range(PREFIX, 20))
    numbers = len(parts["norms"]) * (DIM * (DIM + 1) + 1)
    beyond = 20 - max(prompt, PREFIX)
    rows = sum(len(range(PREFIX if i >= PREFIX else 0, i + 1)) for i in range(prompt, 20)) * 2 * 2 * 2 * DIM * 4
    assert float(ledger.sums()[0, 1, 4]) == beyond * numbers * 4 + rows


def test_texts_of_unequal_length_lose_their_own_prefix(state):
    """A padded text would lose rows that are not of its prefix."""
    method, _, artifacts = state
    q, k, v = draw(20)
    memory = fresh(method, artifacts=artifacts)
    memory.first = torch.tensor([0, 5])
    feed(method, memory, q[:, :, :9], k[:, :, :9], v[:, :, :9], "prefill")
    feed(method, memory, q[:, :, 9:], k[:, :, 9:], v[:, :, 9:], "decode")
    assert [heads[0] - {-1} for heads in held(memory)] == [set(range(6, 20)), set(range(11, 20))]
    states = sum(part.nbytes for part in memory.constants.values())
    assert memory.held_bytes == (14 + 9) * 2 * 2 * DIM * 4 + states  # what stands for a shorter text's rows is no row


def test_a_later_prompt_hears_the_state(state):
    """Rows of a second dense prompt would take the prefix for gone."""
    method, parts, artifacts = state
    q, k, v = draw(20)
    memory = fresh(method, artifacts=artifacts)
    feed(method, memory, q[:, :, :10], k[:, :, :10], v[:, :, :10], "prefill")
    got, _ = feed(method, memory, q[:, :, 10:], k[:, :, 10:], v[:, :, 10:], "prefill")
    check(got, q, k, v, 1, 2, 15, parts, 5)


def rectified(x, quadratic):
    y = x.double() / DIM**0.25
    f = torch.where(y < 0, y.exp(), y)
    return torch.cat(
        [torch.ones(*y.shape[:-1], 1, dtype=y.dtype), f, (f if quadratic == "released" else y) ** 2 / math.sqrt(2)], -1
    )


@pytest.mark.parametrize("features", ["released", "written"])
@pytest.mark.parametrize(("decode", "window"), [("slide", 7), ("grow", 7)])
def test_ratchet_is_sinks_window_and_state(features, decode, window):
    """The named variant would be something else than the source's formula without its defects."""
    method = RatchetKv(rows=4 + window + STATE, features=features, decode=decode)
    q, k, v = draw(30)
    memory = fresh(method)
    feed(method, memory, q[:, :, :20], k[:, :, :20], v[:, :, :20], "prefill")
    got, _ = feed(method, memory, q[:, :, 20:], k[:, :, 20:], v[:, :, 20:], "decode")
    for row in (20, 28):
        first = row + 1 - window if decode == "slide" else 20 - window
        rows, gone = [0, 1, 2, 3, *range(first, row + 1)], list(range(4, first))
        phi = rectified(q[1, 2, row], features)
        phis = rectified(k[1, 1, gone], features)
        weights = torch.cat([(k[1, 1, rows].double() @ q[1, 2, row].double() / math.sqrt(DIM)).exp(), phis @ phi])
        want = weights @ v[1, 1, [*rows, *gone]].double() / weights.sum()
        torch.testing.assert_close(got[1, 2, row - 20].double(), want, atol=1e-4, rtol=1e-4)


def test_each_layer_and_prompt_of_ratchet_has_the_same_rows():
    """The source's counter took the state's rows from the first layers alone, and at the second prompt from none."""
    method = RatchetKv(rows=11 + STATE)
    q, k, v = draw(60)
    for layer in (0, 5):
        memory = fresh(method, layer=layer, layers=6)
        for start in (0, 30):
            feed(method, memory, *(x[:, :, start : start + 30] for x in (q, k, v)), "prefill")
            assert {len(head) for text in held(memory) for head in text} == {11}


def test_the_guard_leaves_components_that_would_change_by_more_than_themselves():
    """`guard: ratio` would be another rule than the source's, or act by default."""
    q, k, v = draw(30)
    outs = {}
    for guard in ("none", "ratio"):
        method = RatchetKv(rows=6 + STATE, guard=guard)
        outs[guard] = feed(method, fresh(method), q, k, v, "decode")[0][0, 0, 29]
    exact = attended(q[0, 0, 29], k, v, 0, 0, [0, 1, 2, 3, 28, 29]).float()
    want = torch.where((outs["none"] / exact - 1).abs() < 1, outs["none"], exact)
    torch.testing.assert_close(outs["ratio"], want, atol=1e-4, rtol=1e-4)
    assert not torch.equal(outs["ratio"], outs["none"])


def test_ratchet_does_not_overflow():
    """The source's exponential of a log-sum-exp is infinite from 88 on; the sums must be joined as logarithms."""
    method = RatchetKv(rows=11 + STATE)
    q, k, v = draw(30)
    memory = fresh(method)
    feed(method, memory, q[:, :, :20], k[:, :, :20], v[:, :, :20], "prefill")
    got, _ = feed(method, memory, 40 * q[:, :, 20:], 40 * k[:, :, 20:], v[:, :, 20:], "decode")
    assert got.isfinite().all()
    assert got.abs().max() <= v.abs().max() + 1e-4


def test_a_short_prompt_of_ratchet_stays_whole():
    """The source read outside of prompts shorter than its window."""
    method = RatchetKv(rows=11 + STATE)
    q, k, v = draw(8)
    full, _ = feed(make_method("full", {}), fresh(make_method("full", {})), q, k, v, "decode")
    got, _ = feed(method, fresh(method), q, k, v, "decode")
    torch.testing.assert_close(got, full)


def test_a_budget_that_the_state_eats_is_refused():
    """Windows of no rows, or of less than none, were what the source used silently."""
    method = RatchetKv(rows=STATE + 4)
    q, k, v = draw(8)
    with pytest.raises(ValueError, match=f"raise rows to at least {STATE + 5}"):
        feed(method, fresh(method), q, k, v, "prefill")
