"""Maps of attention and curves of thresholds: against the stock model's weights, and by hand."""

from pathlib import Path

import pytest
import torch
from conftest_models import make_method, make_model
from safetensors.torch import save_file
from test_thresholds import corpus, first, session  # noqa: F401

from lacuna.harness.observe import some_layers
from lacuna.harness.tasks.attention_maps import AttentionMaps
from lacuna.harness.tasks.threshold_curves import ThresholdCurves

WINDOW, PROMPT = 20, 6


def measured(model, path, name, args, artifacts=None, **task):
    given = {"corpus": path, "window": WINDOW, "prompt": PROMPT, "rows": 64, "columns": 96, **task}
    with session(model, artifacts, make_method(name, args)) as found:
        return AttentionMaps(**given).run(found)


@torch.no_grad()
@pytest.mark.parametrize("head", [None, 3])
def test_weights_are_those_of_the_stock_model(head, corpus, model):  # noqa: F811
    """Another head, another row or weights after a selection would be shown as dense attention."""
    eager = make_model()
    eager.set_attn_implementation("eager")
    stock = eager(first(corpus, WINDOW)[None], output_attentions=True).attentions
    outcome = measured(model, corpus, "full", {}, layers=(0, 1), head=head)
    for sample, weights in zip(outcome.samples, stock, strict=True):
        want = weights[0].mean(0) if head is None else weights[0, head]
        assert sample["row"] == list(range(PROMPT, WINDOW - 0))
        for row, values in zip(sample["row"], sample["weight"], strict=True):
            assert values == pytest.approx(want[row, : row + 1].tolist(), rel=5e-3, abs=1e-6)
        assert all(k == 1 for kept in sample["kept"] for k in kept)
    assert outcome.metrics["kept_mass"] == pytest.approx(1)


def test_kept_rows_are_marked_where_they_are(corpus, model):  # noqa: F811
    """A mark would stand at a row's place in the cache instead of its place in the text."""
    outcome = measured(model, corpus, "streaming_llm", {"sinks": 1, "rows": 4}, layers=(1,))
    (sample,) = outcome.samples
    for row, kept in zip(sample["row"], sample["kept"], strict=True):
        assert [i for i, k in enumerate(kept) if k] == [0, *range(row - 2, row + 1)]
        assert set(kept) <= {0, 1}
    inside = [
        sum(w for w, k in zip(*pair, strict=True) if k) for pair in zip(sample["weight"], sample["kept"], strict=True)
    ]
    assert sample["kept_mass"] == pytest.approx(sum(inside) / len(inside), rel=1e-2)


def test_blocks_are_marked_whole_beside_the_chunk(corpus, model):  # noqa: F811
    """A block chosen by its landmark would be marked in part, or at its landmark's place."""
    (sample,) = measured(model, corpus, "landmark", {"rows": 8, "chunk": 4}, layers=(1,), head=0).samples
    for row, kept in zip(sample["row"], sample["kept"], strict=True):
        start = row // 4 * 4
        assert kept[start:] == [1] * (row + 1 - start)
        blocks = [kept[n : n + 4] for n in range(0, start, 4)]
        assert sorted(blocks) == [[0] * 4] * (len(blocks) - 1) + [[1] * 4]


def test_rows_chosen_after_an_eviction_are_marked_by_their_tokens(corpus, model):  # noqa: F811
    """Each query head's choice among what its group holds would be marked at places of the cache."""
    args = {"rows": 4, "read": 2, "evict_args": {"window": 2}, "select_args": {"heads": "query"}}
    (sample,) = measured(model, corpus, "evict_then_select", args, layers=(1,), head=3).samples
    assert all(sum(kept) == 2 for kept in sample["kept"])
    (held,) = measured(model, corpus, "evict_then_select", {**args, "read": 1.0}, layers=(1,), head=3).samples
    for kept, there in zip(sample["kept"], held["kept"], strict=True):
        assert all(k <= t for k, t in zip(kept, there, strict=True))
    assert sum(held["kept"][-1]) == 4 + WINDOW - PROMPT


def test_the_largest_weights_are_kept_by_topk(corpus, model):  # noqa: F811
    """Marks of one head would lie on the weights of another."""
    (sample,) = measured(model, corpus, "topk", {"rows": 3, "heads": "query"}, layers=(0,), head=2).samples
    for weight, kept in zip(sample["weight"], sample["kept"], strict=True):
        best = sorted(range(len(weight)), key=lambda i: -weight[i])[:3]
        assert sorted(best) == [i for i, k in enumerate(kept) if k]


def test_a_small_map_sums_over_ranges(corpus, model):  # noqa: F811
    """Weights would be lost where a map is smaller than its text."""
    large = measured(model, corpus, "topk", {"rows": 3}, layers=(0,)).samples[0]
    small = measured(model, corpus, "topk", {"rows": 3}, layers=(0,), rows=2, columns=5).samples[0]
    assert small["edge"] == [0, 4, 8, 12, 16, 20]
    assert small["row"] == [PROMPT, WINDOW - 1]
    assert [len(row) for row in small["weight"]] == [2, 5]
    assert small["weight"][1] == pytest.approx([sum(large["weight"][-1][i : i + 4]) for i in range(0, 20, 4)], rel=2e-2)
    assert small["kept"][0][1] == pytest.approx(sum(large["kept"][0][4:7]) / 3, rel=2e-2)
    assert sum(small["weight"][1]) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(("task", "words"), [({"layers": (2,)}, "no layer 2"), ({"head": 4}, "no query head 4")])
def test_what_is_not_there_is_refused(task, words, corpus, model):  # noqa: F811
    """A wrong number would end in a traceback, or in the map of another head."""
    with pytest.raises(ValueError, match=words):
        measured(model, corpus, "topk", {"rows": 3}, **task)


def test_some_layers_reach_from_the_first_to_the_last():
    """The layers of a deep model would all lie at its beginning."""
    assert some_layers(None, 32) == [0, 16, 31]
    assert some_layers(None, 2) == [0, 1]
    assert some_layers((5, 1, 5), 8) == [1, 5]


def test_curves_are_those_of_the_calibration(model, tmp_path: Path):
    """A head's thresholds would be shown at another length, or as another head's."""
    lengths, table = torch.tensor([8, 16, 24, 32]), torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    tensors = {
        f"layer.{i}.{name}": part.clone() for i in range(2) for name, part in (("lengths", lengths), ("pre", table + i))
    }
    save_file({**tensors, "layer.0.mass": table}, tmp_path / "t.safetensors")
    with session(model, {"calibration": tmp_path / "t.safetensors"}) as found:
        outcome = ThresholdCurves(points=2, layers=(1,)).run(found)
    assert outcome.samples == [{"layer": 1, "signal": "pre", "length": [8, 32], "threshold": [[2.0, 5.0], [6.0, 9.0]]}]
    assert outcome.metrics == {"layers": 2.0, "threshold_longest_min": 5.0, "threshold_longest_max": 9.0}
