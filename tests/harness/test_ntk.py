"""The training of NTK-Attention's state: that it learns, and what it starts from."""

import pytest
import torch
from safetensors.torch import load_file

from lacuna.harness.distil import Lesson
from lacuna.harness.tasks.ntk import Ntk, _Prefix
from lacuna.models.memory import Site

SMALL = "prefix: 8, tokens: 1536, window: 64"


@pytest.mark.parametrize("heads", ["kv", pytest.param("query", marks=pytest.mark.slow)])
def test_a_shared_prefix_is_learned(heads, sweep, run, store):
    """On text that it has not seen, a trained state must be worth more than the sums it started as, and than nothing."""
    records, _ = run(sweep(f"method: full\ntask: {{ntk: {{{SMALL}, text: shared, heads: {heads}}}}}\n"))
    (made,) = records.values()
    assert made.metrics["error_after"] < 0.9 * min(made.metrics["error_before"], made.metrics["error_dropped"])
    parts = load_file(store.get_artifact(made.key))
    assert {len(part) for part in parts.values()} == {{"kv": 3, "query": 6}[heads]}


def test_the_method_takes_what_was_made(sweep, run):
    """A calibration that the method cannot read would fail every cell that needs it."""
    text = "method: {ntk: {prefix: 8, state: {tokens: 512, window: 64, epochs: 1}}}\n"
    records, _ = run(sweep(text + "task: {perplexity: {window: 64, windows: 1}}\n"))
    assert {(cell.task.name, record.status) for cell, record in records.items()} == {
        ("ntk", "ok"),
        ("perplexity", "ok"),
    }


def test_it_starts_as_the_prefixs_sums_at_their_weight_in_the_softmax():
    """A start far from what is to be replaced would have to be unlearned first."""
    task, rows = Ntk(prefix=5), 20
    q, k, v = (torch.randn(1, 1, *shape) for shape in ((2, rows, 8), (rows, 8), (rows, 8)))
    state = _Prefix(task).start(Lesson(Site(0, 1, (0,), 1, 8, lambda x, _: x), q, k, v))
    phi = torch.where(k[0, 0, :5] > 0, k[0, 0, :5] + 1, k[0, 0, :5].exp())
    ratio = state["values"][0] / (phi.T @ v[0, 0, :5])
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    torch.testing.assert_close(state["norms"][0], ratio[0, 0] * phi.sum(0))
    phi_q = torch.where(q > 0, q + 1, q.exp())[0, 0, :, 5:]
    mass = (phi_q @ state["norms"][0]).log() + state["scale"][0]
    own = (q[0, 0, :, 5:] @ k[0, 0, :5].T).logsumexp(-1)
    torch.testing.assert_close(mass.mean(), own.mean())


def test_text_that_is_measured_on_is_refused():
    """A state that has read the test text would be good at it."""
    with pytest.raises(ValueError, match="would have seen the test"):
        Ntk(corpus="prose")
