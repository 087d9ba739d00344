"""Rows that leave in order of age, known beforehand, against the walk that asks the marks at every row."""

import pytest
import torch
from conftest_models import DIM, make_model, tokens
from evict_reference import draw, feed, fresh, held

from lacuna.models.bind import bind
from lacuna.models.call import Call
from lacuna.models.methods.linear_residual import LinearResidual
from lacuna.models.methods.ratchetkv import RatchetKv
from lacuna.models.residual import Residual

STATE = 2 * DIM + 1


def budget_in_bytes(rows, features=153):
    """What so many rows and the state of a default map weigh, of two heads."""
    return 2 * (4 * (features * (DIM + 1) + 1) + rows * (2 * DIM * 4 + 4))


METHODS = {
    "rows": LinearResidual(keep=None, rows=9, sinks=2, recent=1.0),
    "no sinks": LinearResidual(keep=None, rows=5, sinks=0, recent=1.0, centre="mean"),
    "share": LinearResidual(keep=0.5, sinks=3, recent=1.0, features="elu"),
    "bytes": LinearResidual(keep=None, bytes=budget_in_bytes(7), sinks=2, recent=1.0),
    "ratchet": RatchetKv(rows=STATE + 11),
    "guarded": RatchetKv(rows=STATE + 11, guard="ratio"),
}
PROMPTS = {"one by one": [14] + [1] * 16, "at once": [14, 16], "second prompt": [14, 5, -6, 5], "long": [20, 100]}


def run(method, prompts, first):
    """Outputs and ledger of a dense prompt, decoded rows and (negative) further prompts."""
    rows = sum(abs(new) for new in prompts)
    q, k, v = draw(rows)
    memory, outs, told, begin = fresh(method), [], [], 0
    memory.first = torch.tensor(first)
    for i, new in enumerate(prompts):
        phase = "decode" if i and new > 0 else "prefill"
        at = slice(begin, begin + abs(new))
        out, ledger = feed(method, memory, *(x[:, :, at] for x in (q, k, v)), phase)
        memory.end_prompt(Call(None, memory.first, phase, 1.0, memory.seen, abs(new)))
        outs.append(out)
        told.append(ledger.sums())
        begin += abs(new)
    return torch.cat(outs, 2), torch.stack(told), memory


@pytest.mark.parametrize("first", [[0, 0], [0, 5]], ids=["even", "padded"])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_order_of_age_is_what_the_walk_finds(method, prompts, first, monkeypatch):
    """Rows would leave early, late or twice, and the state be that of another window, with no sign of it."""
    asked = []
    whether = Residual.by_age
    monkeypatch.setattr(Residual, "by_age", lambda self, *given: asked.append(whether(self, *given)) or asked[-1])
    got, told, memory = run(method, prompts, first)
    assert all(asked)
    monkeypatch.setattr(Residual, "by_age", lambda *_: False)
    want, counted, walked = run(method, prompts, first)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(told, counted, atol=0, rtol=1e-12)
    assert held(memory) == held(walked)
    for name, part in walked.extra.items():
        torch.testing.assert_close(memory.extra[name], part, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "prompts"),
    [
        (LinearResidual(keep=None, rows=9, sinks=2), [14, 6]),  # heavy rows are held for their attention
        (LinearResidual(keep=0.25, sinks=4, recent=1.0), [14, 6]),  # a budget below the sinks
        (LinearResidual(keep=0.25, sinks=4, recent=1.0), [14, 6, -40, 6]),  # sinks that were lost do not come back
        (LinearResidual(keep=None, bytes=budget_in_bytes(3), sinks=4, recent=1.0), [2, 12]),
    ],
)
def test_what_attention_decides_is_walked(method, prompts, monkeypatch):
    """Heavy hitters, or sinks that do not fit, would be dropped by age."""
    asked = []
    whether = Residual.by_age
    monkeypatch.setattr(Residual, "by_age", lambda self, *given: asked.append(whether(self, *given)) or asked[-1])
    run(method, prompts, [0, 0])
    assert asked
    assert not any(asked)


@pytest.mark.parametrize("padded", [False, True])
def test_layers_of_one_budget_share_the_order(padded, monkeypatch):
    """A layer would drop what another layer's budget drops, or go on with the order of the call before."""
    model, ids = make_model(num_hidden_layers=4), tokens(2, 60)
    method = LinearResidual(keep=None, rows=[9, 12, 9], sinks=2, recent=1.0)
    mask = (torch.arange(60) >= torch.tensor([0, 6])[:, None]).long() if padded else None
    outs = {}
    for by_age in (True, False):
        if not by_age:
            monkeypatch.setattr(Residual, "by_age", lambda *_: False)
        with bind(model, method) as binding:
            cache = binding.cache()
            for begin, end in ((0, 20), (20, 41), (41, 60)):
                seen = None if mask is None else mask[:, :end]
                binding.feeding = "prefill" if begin == 0 else "decode"
                out = model(ids[:, begin:end], attention_mask=seen, past_key_values=cache, use_cache=True).logits
            outs[by_age] = out, binding.ledger.sums()
    torch.testing.assert_close(outs[True][0], outs[False][0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(outs[True][1], outs[False][1], atol=0, rtol=1e-12)


def test_no_attention_is_summed_where_nothing_reads_it():
    """A window's prompt would cost its attention matrix once more."""
    q, k, v = draw(20)
    memory = fresh(METHODS["rows"])
    feed(METHODS["rows"], memory, q, k, v, "prefill")
    marks = memory.aux["mark"].view[..., 0]
    assert sorted(marks[0, 0].tolist())[:7] == [0.0] * 7  # all but the two sinks
    assert bool((marks > 1e20).sum(-1).eq(2).all())
