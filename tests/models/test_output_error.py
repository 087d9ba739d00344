"""Output error of a method: what it is where it is known, and by its own formula."""

import pytest
import torch
from conftest_models import make_method
from test_thresholds import corpus, session  # noqa: F401

from lacuna.harness.tasks.output_error import OutputError

WINDOW, PROMPT = 24, 9


class _Recorder:
    """Queries, keys and values as the model gives them, and outputs, of one text; deeper layers see dense attention."""

    def __init__(self):
        self.keys, self.values, self.queries, self.outputs = {}, {}, {}, {}

    def arrived(self, memory, k_BGTD, v_BGTD):
        for kept, new in ((self.keys, k_BGTD), (self.values, v_BGTD)):
            kept.setdefault(memory.site.layer, []).append(new)

    def attended(self, memory, call, q_BHTD, out_BHTD):
        layer = memory.site.layer
        self.queries.setdefault(layer, []).append(q_BHTD)
        self.outputs.setdefault(layer, []).append(out_BHTD)
        return self.softmax(layer, lambda scores: scores)

    def softmax(self, layer, mask):
        """Rows of the last call under a mask of scores, written out."""
        q = self.queries[layer][-1].double()
        k, v = (torch.cat(x[layer], 2).double().repeat_interleave(2, 1) for x in (self.keys, self.values))
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        rows = torch.arange(k.shape[2] - q.shape[2], k.shape[2])
        scores = scores.masked_fill(torch.arange(k.shape[2]) > rows[:, None], -torch.inf)
        return (mask(scores).softmax(-1) @ v).float()


def measured(model, path, name, args, artifacts=None, **task):
    given = {"corpus": path, "window": WINDOW, "windows": 3, "prompt": PROMPT, **task}
    with session(model, artifacts, make_method(name, args)) as found:
        return OutputError(**given).run(found)


def best_alone(scores):
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True), -torch.inf)


@pytest.mark.parametrize(("name", "args"), [("full", {}), ("topk", {"keep": 1.0}), ("loki", {"keep": 1.0, "d": 1.0})])
def test_everything_has_no_error(name, args, corpus, basis, model):  # noqa: F811
    """A method that attends everything would seem to change the output: its keys were taken for the model's."""
    assert measured(model, corpus, name, args, basis()).metrics["output_error"] < 1e-5


def test_it_is_the_quotient_of_norms(corpus, model):  # noqa: F811
    """Rows, heads or windows would be joined another way than the docstring says."""
    outcome = measured(model, corpus, "topk", {"rows": 1, "heads": "query"}, windows=1)
    recorder = _Recorder()
    with session(model) as found:
        ids = torch.tensor([found.encode(open(corpus).read())[:WINDOW]])  # noqa: PTH123, SIM115
        found.binding.observer = recorder
        found.score(ids, prompt=PROMPT)
        for sample in outcome.samples:
            dense, sparse = (recorder.softmax(sample["layer"], mask) for mask in (lambda s: s, best_alone))
            error = (sparse - dense).norm() / dense.norm()
            heads = (sparse - dense).norm(dim=(2, 3)) / dense.norm(dim=(2, 3))
            assert sample["error"] == pytest.approx(float(error), rel=1e-4)
            assert sample["by_window"] == [pytest.approx(float(error), rel=1e-4)]
            assert sample["by_head"] == pytest.approx(heads[0].tolist(), rel=1e-4)


def test_the_prompt_is_not_counted(corpus, model):  # noqa: F811
    """A dense prompt would make the error of every method smaller, the more so the longer it is."""
    prompted = measured(model, corpus, "snapkv", {"rows": 4, "window": 2}, prompt=WINDOW - 2)
    assert prompted.metrics["output_error"] > 0.05


def test_inputs_of_the_method_make_deeper_layers_differ(corpus, model):  # noqa: F811
    """Both kinds of input would be one: an error that layers pass on would be taken for the layer's own."""
    own, passed = (measured(model, corpus, "topk", {"rows": 2}, inputs=kind).samples for kind in ("dense", "method"))
    assert own[0] == passed[0]
    assert own[1] != passed[1]


def test_nobody_observes_afterwards(corpus, model):  # noqa: F811
    """What a cell's analysis does would be done to the next cell too, and its memory never be given back."""
    with session(model, None, make_method("topk", {"keep": 0.5})) as found:
        for prompt in (PROMPT, WINDOW):
            try:
                OutputError(corpus=corpus, window=WINDOW, windows=1, prompt=prompt).run(found)
            except ValueError:
                assert prompt == WINDOW
            assert found.binding.observer is None


def test_a_prompt_as_long_as_the_window_is_refused(corpus, model):  # noqa: F811
    """A window without a row to act on would end in a division by zero."""
    with pytest.raises(ValueError, match="make it shorter"):
        measured(model, corpus, "topk", {"rows": 2}, prompt=WINDOW)
