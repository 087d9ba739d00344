"""Agreement with exact top-k: what it is for methods whose answer is known."""

import pytest
import torch
from conftest_models import make_method
from test_thresholds import corpus, session  # noqa: F401

from lacuna.harness.tasks.agreement import Agreement, Watch
from lacuna.models.call import Call
from lacuna.models.memory import Memory, Site


def measured(model, path, name, args, artifacts=None):
    with session(model, artifacts, make_method(name, args)) as found:
        outcome = Agreement(corpus=path, window=64).run(found)
    return outcome


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("topk", {"keep": 0.25}),
        ("topk", {"keep": 0.25, "heads": "query"}),
        ("loki", {"rows": 5, "d": 1.0}),
        ("top_theta", {"rows": 4}),
    ],
)
def test_exact_scores_agree(name, args, corpus, basis, model):  # noqa: F811
    """Who ranks by exact scores, or compares them with any threshold, keeps the best rows."""
    outcome = measured(model, corpus, name, args, basis())
    assert outcome.metrics["recall"] == pytest.approx(1, abs=1e-3)
    assert outcome.metrics["jaccard"] == pytest.approx(1, abs=1e-3)
    sets = 4 if name == "top_theta" or args.get("heads") == "query" else 2
    assert [(s["layer"], s["set"]) for s in outcome.samples] == [(i, n) for i in range(2) for n in range(sets)]


@pytest.mark.parametrize("name", ["loki", "sparq", "loki_theta"])
def test_approximate_scores_agree_in_part(name, corpus, basis, model):  # noqa: F811
    """The Jaccard index counts rows of either side: it lies below recall, which the code of Loki printed in its stead."""
    got = measured(model, corpus, name, {"keep": 0.25}, basis()).metrics
    assert 0 < got["jaccard"] < got["recall"] < 1


def test_recall_and_jaccard_by_hand():
    """Two of four chosen rows among the best four: recall 1/2, Jaccard index 2/6."""
    memory = Memory(Site(3, 4, (0,), 1, 1, None), {})
    memory.append(torch.arange(8.0).view(1, 1, 8, 1), torch.zeros(1, 1, 8, 1))
    keep = torch.tensor([1, 1, 0, 0, 0, 0, 1, 1]).bool().view(1, 1, 1, 8)
    watch = Watch()
    watch(memory, Call(None, torch.zeros(1, dtype=torch.long), "decode", 1.0, 8, 1), torch.ones(1, 1, 1, 1), keep)
    assert watch.sums[3].tolist() == [[0.5, pytest.approx(1 / 3), 1.0]]


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("full", {}, "of selections"),
        ("topk", {"keep": 1.0}, "left no row"),
        ("landmark", {"rows": 12, "chunk": 8}, "chooses by tokens of its own"),
    ],
)
def test_nothing_left_out_is_refused(name, args, words, corpus, model):  # noqa: F811
    """An agreement of 1 because everything was kept says nothing."""
    with pytest.raises(ValueError, match=words):
        measured(model, corpus, name, args)
