"""Accounts of rows attended: by hand, and for methods whose answer is known."""

from contextlib import contextmanager

import pytest
import torch
from conftest_models import gap_cases, make_method
from test_thresholds import corpus, first, session  # noqa: F401

from lacuna.harness.observe import Attended, observed_by
from lacuna.harness.tasks.kept_rows import KeptRows, Watch, asked
from lacuna.models.call import Call
from lacuna.models.ledger import Ledger
from lacuna.models.memory import Memory, Site
from lacuna.models.residual import Residual

WINDOW, PROMPT = 24, 8
TELLS = ["adakv", "evict_then_select", "full", "h2o", "keydiff", "l2norm", "landmark", "linear_residual", "loki", "loki_theta", "pca_attn", "pyramidkv", "quest", "snapkv", "sparq", "streaming_llm", "top_theta", "topk", "tova"]  # fmt: skip


@contextmanager
def telling(name):
    """Methods of a later day need not tell; those named here must."""
    try:
        yield
    except ValueError as error:
        if name in TELLS or "does not tell" not in str(error):
            raise
        pytest.skip(f"{name} cannot be analysed: {error}")


def measured(model, path, name, args, artifacts=None, **task):
    given = {"corpus": path, "window": WINDOW, "windows": 3, "prompt": PROMPT, "lengths": 4, "places": 6, **task}
    with session(model, artifacts, make_method(name, args)) as found:
        return KeptRows(**given).run(found)


def memory_of(groups, held, columns=None):
    memory = Memory(Site(0, 1, tuple(range(groups)), groups, 1, None), {})
    memory.append(torch.zeros(1, groups, held, 1), torch.zeros(1, groups, held, 1))
    memory.columns = columns
    return memory


def call_of(seen, new):
    return Call(None, torch.zeros(1, dtype=torch.long), "decode", 1.0, seen, new)


def test_accounts_by_hand():
    """Two rows of lengths 3 and 4, two heads of one group: every sum written down."""
    task = KeptRows(window=4, prompt=2, lengths=2, places=2)
    watch = Watch(task, make_method("topk", {"keep": None, "rows": 2}))
    keep = torch.tensor([[[[1, 0, 1, 0], [1, 1, 0, 1]], [[0, 1, 1, 0], [0, 0, 0, 1]]]]).bool()
    watch(memory_of(1, 4), call_of(4, 2), keep)
    tally = watch.tallies[0]
    assert tally.rows.tolist() == [1, 1]
    assert tally.context.tolist() == [3, 4]
    assert tally.kept.tolist() == [[2, 3], [2, 1]]
    assert tally.union.tolist() == [3 + 3]
    assert tally.popular.tolist() == [[2, 2, 1, 1]]
    assert tally.visible.tolist() == [2, 2, 2, 1]
    assert (tally.longer.tolist(), float(tally.asked_longer)) == ([5, 3], 4)
    sample = task._sample(tally)
    assert sample["kept"] == [2, 2]
    assert (sample["least"], sample["most"]) == ([2, 1], [2, 3])
    assert sample["sets"] == [2.5, 1.5]
    assert sample["union"] == pytest.approx([6 / 7], rel=1e-4)
    assert sample["popularity"] == pytest.approx([1.0, 2 / 3], rel=1e-4)
    assert sample["factors"] == [1.25, 0.75]
    assert (sample["kept_mean"], sample["kept_share"]) == (2, pytest.approx(4 / 7))


@pytest.mark.parametrize(
    ("name", "args", "layer", "want"),
    [
        ("topk", {"keep": 0.25}, 0, [1, 1, 25]),
        ("topk", {"keep": None, "rows": 8}, 1, [1, 7, 8]),
        ("top_theta", {"keep": [0.5, 0.1], "rows": None}, 1, [1, 1, 10]),
        ("topk", {"keep": None, "bytes": 4096}, 0, None),
        ("snapkv", {"rows": 64}, 0, None),
        ("full", {}, 0, None),
    ],
)
def test_budgets_in_rows(name, args, layer, want):
    """A size factor would be held against another budget than the method's."""
    site = Site(layer, 2, (0,), 1, 1, None)
    found = asked(make_method(name, args), site, torch.tensor([1, 7, 100]))
    assert (None if found is None else found.tolist()) == want


def test_rows_held_are_told_by_their_tokens():
    """After an eviction row 1 of a cache is no longer token 1, and a hole is no token at all."""
    told = []
    memory = memory_of(2, 3, torch.tensor([[[0, 4, 5], [-1, 3, 5]]]))
    memory.seen = 6
    ledger = Ledger()
    watch = Attended(ledger, lambda _m, _c, keep: told.append(keep))
    ledger.count(memory, call_of(6, 1), torch.tensor([[[3], [2]]]), 0.0)
    watch.attended(memory, call_of(6, 1), torch.empty(0), torch.empty(0))
    assert told[0].tolist() == [[[[True, False, False, False, True, True]], [[False, False, False, True, False, True]]]]


@pytest.mark.parametrize("heads", ["kv", "query"])
def test_exact_topk_keeps_what_was_asked(heads, corpus, model):  # noqa: F811
    """The measure itself would be off: exact top-k has a size factor of one in every head."""
    outcome = measured(model, corpus, "topk", {"rows": 3, "heads": heads})
    assert outcome.metrics["size_factor"] == 1
    assert outcome.metrics["effective_k"] == 3
    lengths = range(PROMPT + 1, WINDOW)
    for sample in outcome.samples:
        assert sample["kept"] == [3] * 4
        assert sample["factors"] == [1.0] * (2 if heads == "kv" else 4)
        assert sample["kept_share"] == pytest.approx(3 * len(lengths) / sum(lengths), abs=0.02)
        assert sample["union_share"] >= sample["kept_share"] - 1e-12


def test_full_attends_everything(corpus, model):  # noqa: F811
    """A method that says nothing of its choices would be counted as if it kept nothing."""
    outcome = measured(model, corpus, "full", {})
    assert (outcome.metrics["kept_share"], outcome.metrics["union_share"]) == (1, 1)
    assert "size_factor" not in outcome.metrics
    assert all(v == 1 for s in outcome.samples for v in s["popularity"])


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_accounts_agree_with_the_ledger(name, args, corpus, basis, model):  # noqa: F811
    """Rows that were evicted, or never read, would be counted as attended."""
    given = {"corpus": corpus, "window": WINDOW, "windows": 3, "prompt": PROMPT}
    method = make_method(name, args)
    with session(model, basis(), method) as found, telling(name):
        outcome = KeptRows(**given).run(found)
        sums = found.binding.ledger.sums()
    density = float(sums[:, 1, 2].sum() / sums[:, 1, 1].sum())
    if isinstance(method, Residual):  # rows are read once more as they go into the state
        assert outcome.metrics["union_share"] <= density
    elif getattr(method, "heads", "") == "query" and method.shape == "evict":
        # query heads hold copies of their own: the ledger takes their mean, the union is of their tokens
        assert outcome.metrics["kept_share"] == pytest.approx(density)
    else:
        assert outcome.metrics["union_share"] == pytest.approx(density)


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_rows_at_once_are_those_one_by_one(name, args, corpus, basis, model):  # noqa: F811
    """A method fed at once would be told to attend other rows than step by step."""
    kept = []
    for rows in (WINDOW, 2):
        with session(model, basis(), make_method(name, args)) as found, telling(name):
            told = {}
            watch = Attended(
                found.binding.ledger, lambda m, _c, keep, told=told: told.setdefault(m.site.layer, []).append(keep)
            )
            with observed_by(found, watch):
                state = found.prefill(first(corpus, PROMPT)[None].tolist())
                for part in first(corpus, WINDOW)[None, PROMPT:].split(rows, 1):
                    found.extend(state, part)
            pad = torch.nn.functional.pad
            kept.append(
                {i: torch.cat([pad(k, (0, WINDOW - k.shape[3])) for k in parts], 2) for i, parts in told.items()}
            )
    for layer, keep in kept[0].items():
        assert torch.equal(keep.expand_as(kept[1][layer]), kept[1][layer])


@pytest.mark.parametrize(("name", "args"), [("full", {}), ("snapkv", {"rows": 6, "window": 2}), ("topk", {"rows": 3})])
def test_batches_add_up(name, args, corpus, model, monkeypatch):  # noqa: F811
    """A second batch would be counted from the first one's rows on, or refused."""
    at_once = measured(model, corpus, name, args)
    monkeypatch.setattr("lacuna.harness.observe.TOKENS_AT_ONCE", WINDOW)
    assert measured(model, corpus, name, args) == at_once


def test_ranges_without_a_length_are_left_out(corpus, model):  # noqa: F811
    """A row of length 0 would stand at the beginning of a figure."""
    (sample, _) = measured(model, corpus, "topk", {"rows": 3}, prompt=WINDOW - 3, lengths=12).samples
    assert sample["length"] == [WINDOW - 2, WINDOW - 1, WINDOW]
    assert all(len(sample[name]) == 3 for name in ("kept", "least", "most", "asked"))


def test_no_row_beyond_the_budget_has_no_factor(corpus, model):  # noqa: F811
    """A share of nothing would be no number, and the record invalid."""
    outcome = measured(model, corpus, "topk", {"rows": 400})
    assert "size_factor" not in outcome.metrics
    assert all("factors" not in sample for sample in outcome.samples)


def test_sinks_are_popular(corpus, model):  # noqa: F811
    """Popularity would stand at another token than the one that was kept."""
    outcome = measured(model, corpus, "streaming_llm", {"sinks": 2, "rows": 7}, places=12)
    for sample in outcome.samples:
        assert sample["popularity"][0] == 1  # tokens 0 and 1
        assert sample["popularity"][1] == 0  # tokens 2 and 3: left before the prompt's end


def test_a_method_that_does_not_tell_is_refused():
    """All rows held would be counted as attended by a selection that says nothing."""
    ledger, memory = Ledger(), memory_of(1, 4)
    watch = Attended(ledger, lambda *_: None)
    ledger.count(memory, call_of(4, 2), torch.tensor([[[2, 2]]]), 0.0)
    with pytest.raises(ValueError, match="does not tell which rows"):
        watch.attended(memory, call_of(4, 2), torch.empty(0), torch.empty(0))
