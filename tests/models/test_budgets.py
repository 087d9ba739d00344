"""Budgets in all three words, against what the ledger counted, and the audit that holds every call against them."""

import contextlib
import dataclasses

import pytest
import torch
from conftest_models import DIM, GAPS, gap_cases, make_method, make_model, run_rows, tokens
from torch.utils._python_dispatch import TorchDispatchMode

from lacuna.models import audit, budget
from lacuna.models.bind import bind
from lacuna.models.budget import Cost
from lacuna.models.ledger import summary
from lacuna.models.memory import Site

ROW = 2 * (2 * DIM * 4)  # a key and a value of both heads of a layer, in bytes
NO_EXCESS = {"rows_attended": 0, "rows_held": 0, "bytes": 0}
WINDOWED = ("snapkv", "pyramidkv", "adakv")
EVICTS = ["h2o", "tova", "snapkv", "adakv", "l2norm", "keydiff", "streaming_llm"]
SMALL = {"l2norm": {"skip": 0}, "streaming_llm": {"sinks": 2}, **{name: {"window": 3} for name in WINDOWED}}
MARKED = {"h2o", "tova"}


def told(ledger):
    return summary([ledger.sums()])


@pytest.mark.parametrize(("prefill", "at_once"), [("dense", False), ("sparse", True)])
@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_no_call_goes_beyond_its_budget(name, args, prefill, at_once, basis, model):
    """The budget that a table names would not be the one that was used."""
    _, ledger = run_rows(model, make_method(name, args), tokens(2, 40), basis(), 17, at_once, prefill)
    assert told(ledger)["over_budget"] == NO_EXCESS


@pytest.mark.parametrize("rows", [6, 11])
@pytest.mark.parametrize("name", EVICTS)
def test_bytes_are_what_a_layer_holds(name, rows, model):
    """A method with marks, or with keys held twice, would hold more than its rivals at the same number of bytes."""
    mark = 2 * 4 if name in MARKED else 0
    twice = 2 * SMALL["streaming_llm"]["sinks"] * DIM * 4 if name == "streaming_llm" else 0
    most = rows * (ROW + mark) + twice
    for size, want in ((most, rows), (most + ROW + mark - 1, rows), (most - 1, rows - 1)):
        method = make_method(name, {"bytes": size, **SMALL.get(name, {})})
        with bind(model, method) as binding:
            cache = binding.cache()
            model(tokens(1, 30), past_key_values=cache, use_cache=True)
            memories = [layer.memory for layer in cache.layers]
            assert [float(m.text_rows_BN(binding.first).double().mean()) for m in memories] == [want, want]
            assert all(size - ROW - mark < float(m.held_bytes) <= size for m in memories)
            assert told(binding.ledger)["over_budget"] == NO_EXCESS


def test_bytes_of_query_heads_are_those_of_all_copies(model):
    """Rows repeated for every query head would be free."""
    for heads, want in (("kv", 12), ("query", 6)):
        method = make_method("snapkv", {"bytes": 12 * ROW, "window": 3, "heads": heads})
        with bind(model, method) as binding:
            cache = binding.cache()
            model(tokens(1, 30), past_key_values=cache, use_cache=True)
            assert cache.layers[0].memory.keys.view.shape[2] == want
            assert float(cache.layers[0].memory.held_bytes) == 12 * ROW


@pytest.mark.parametrize(
    ("name", "args", "visible", "fixed"),
    [
        ("topk", {}, ROW / 2, 0),
        ("loki", {"d": 4}, 2 * 4 * 4, 2 * DIM * DIM * 4),
        ("sparq", {"r": 4}, 2 * 4 * 4, 2 * DIM * 4),
        ("sparq", {"r": 4, "rest": "none"}, 2 * 4 * 4, 0),
    ],
)
def test_bytes_are_what_a_layer_reads_for_a_row(name, args, visible, fixed, basis, model):
    """A cheap score and a dear one would be compared as if ranking cost nothing."""
    size = fixed + 40 * visible + 5 * ROW
    _, ledger = run_rows(model, make_method(name, {"bytes": size, **args}), tokens(1, 40), basis(), 17, False)
    rows = [min(c, int((size - fixed - c * visible) // ROW)) for c in range(18, 41)]
    counted = told(ledger)
    assert min(rows) == 5
    assert counted["decode"]["rows_attended_mean"] == pytest.approx(sum(rows) / len(rows))
    assert counted["over_budget"] == NO_EXCESS


def test_quest_reads_no_more_than_its_bytes(model):
    """Boxes are read for every page, also for those that are not chosen."""
    method = make_method("quest", {"bytes": 12 * ROW + 10 * ROW, "page": 4, "skip": 0})
    _, ledger = run_rows(model, method, tokens(1, 40), {}, 17, False)
    counted = told(ledger)
    assert counted["over_budget"] == NO_EXCESS
    assert 18 * ROW < counted["decode"]["bytes_read_per_token"] / 2 <= 22 * ROW


@pytest.mark.parametrize("name", ["topk", "snapkv", "h2o", "streaming_llm"])
def test_a_list_has_the_amount_of_each_layer(name, model):
    """All layers would get one amount, or the list's order would be lost."""
    model = make_model(num_hidden_layers=3)
    method = make_method(name, {"rows": [12, 7], **SMALL.get(name, {})})
    _, ledger = run_rows(model, method, tokens(1, 31), {}, 30, False)
    grown = 1 if name == "snapkv" else 0
    assert [layer["rows_attended_mean"] - grown for layer in told(ledger)["layers"]] == [12, 7, 7]


def test_a_list_longer_than_the_model_is_refused(model):
    """Amounts that no layer has would be ignored."""
    with pytest.raises(ValueError, match="rows has amounts of 3 layers, this model has 2: shorten the list"):
        run_rows(model, make_method("topk", {"rows": [4, 4, 4]}), tokens(1, 20), {}, 10, False)


def test_share_of_causal_pairs_under_one_count_for_all_rows(basis, model):
    """Perplexity's density must be what was kept: with Loki's rule 2 k - k^2 of all causal pairs, not the k of its label."""
    rows = 64
    for name, args in (("topk", {}), ("loki", {"d": 8})):
        method = make_method(name, {"keep": 0.25, "rule": "call", **args})
        with bind(model, method, artifacts=basis()) as binding:
            binding.feeding = "decode"
            model(tokens(1, rows), past_key_values=binding.cache(), use_cache=True)
        kept = sum(min(i, rows // 4) for i in range(1, rows + 1)) / sum(range(1, rows + 1))
        density = told(binding.ledger)["decode"]["density"]
        assert density == pytest.approx(kept)
        assert density == pytest.approx(2 * 0.25 - 0.25**2, abs=0.02)


@pytest.mark.parametrize(("name", "args"), [("topk", {"rows": 5}), ("snapkv", {"rows": 9, "window": 3}), ("h2o", {"rows": 7}),
                                            ("streaming_llm", {"rows": 8, "sinks": 2}), ("pyramidkv", {"rows": 9, "window": 3})])  # fmt: skip
def test_the_audit_sees_one_row_too_many(name, args, monkeypatch, model):
    """A method that spends more than it says would look better than those that do not."""
    method = make_method(name, args)
    honest = type(method).allowance

    def strict(self, memory, call):
        found = honest(self, memory, call)
        less = {f: getattr(found, f) - 1 for f in ("attended_BT", "held_B") if getattr(found, f) is not None}
        return dataclasses.replace(found, **less)

    monkeypatch.setattr(type(method), "allowance", strict)
    _, ledger = run_rows(model, method, tokens(2, 40), {}, 17, False)
    layers = 2 if name == "pyramidkv" else 1
    over = told(ledger)["over_budget"]
    assert over["rows_attended"] == over["rows_held"] * (name != "topk") + (name == "topk") == layers
    assert "went beyond its budget, at the most by" in audit.overdrawn({"over_budget": over})


def stepped(model, method, artifacts, put_off):
    """A ledger of some steps, and how many operations the last of them took."""
    count = Operations()
    with bind(model, method, artifacts=artifacts) as binding:
        cache = binding.cache()
        model(tokens(2, 17), past_key_values=cache, use_cache=True)
        with binding.ledger.audit.put_off() if put_off else contextlib.nullcontext():
            for step in range(8):
                with count if step == 7 else contextlib.nullcontext():
                    model(tokens(2, 1, seed=step), past_key_values=cache, use_cache=True)
        return binding.ledger, count.made


class Operations(TorchDispatchMode):
    """Counts what is asked of the device."""

    made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.made += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "args"), [(name, cases[0]) for name, cases in GAPS.items()])
def test_steps_that_are_timed_are_held_against_budgets_afterwards(name, args, basis, model, monkeypatch):
    """The audit would slow methods with a budget in comparison with dense attention, or not see what timed steps spend."""
    method = make_method(name, args)
    at_once, timed = (stepped(model, method, basis(), put_off) for put_off in (False, True))
    assert timed[0].audit.excess == at_once[0].audit.excess
    monkeypatch.setattr(type(method), "allowance", lambda *_: None)
    assert timed[1] == stepped(model, method, basis(), put_off=False)[1]


def test_kept_budgets_say_nothing():
    """A record that kept its budget, or one of an older version, would be invalid."""
    assert audit.overdrawn({"over_budget": NO_EXCESS}) == audit.overdrawn({}) == ""


@pytest.mark.parametrize("given", [{"keep": 0.3}, {"rows": 9}, {"bytes": 4000}])
def test_the_widest_row_is_known_beforehand(given):
    """A kernel's output would have no room for all rows chosen, or room that is never used."""
    place = Site(0, 1, (0, 1), 2, DIM, rotate=lambda x, _: x)
    amounts = dataclasses.make_dataclass(
        "Amounts", [("keep", object, None), ("rows", object, None), ("bytes", object, None)]
    )
    method, cost = amounts(**given), Cost(100.0, 17.0, 50.0)
    for held in (1, 5, 30, 200):
        each = budget.in_rows(method, place, torch.arange(1, held + 1), cost)
        assert budget.widest(method, place, held, cost) == int(each.max())
