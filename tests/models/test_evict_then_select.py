"""One method evicts, another selects: rows and bytes are those of both, written out."""

import pytest
import torch
from conftest_models import DIM, make_method
from evict_reference import ROW, attended, draw, feed, fresh, held, row_weights
from safetensors.torch import save_file

from lacuna.models.methods.evict_then_select import EvictThenSelect

SNAP = {"rows": 10, "evict_args": {"window": 3}}


def after(method, prompt=24, **place):
    q, k, v = draw(30)
    memory = fresh(method, **place)
    feed(method, memory, q[:, :, :prompt], k[:, :, :prompt], v[:, :, :prompt], "prefill")
    return memory, q, k, v


@pytest.fixture
def basis(tmp_path):
    """An orthogonal basis of each head."""
    turns = torch.linalg.qr(torch.randn(2, DIM, DIM, generator=torch.Generator().manual_seed(3))).Q.contiguous()
    save_file({"layer.0.basis": turns, "layer.0.variance": torch.ones(2, DIM) / DIM}, tmp_path / "basis.safetensors")
    return {"artifacts": {"basis": tmp_path / "basis.safetensors"}}


def test_rows_are_the_best_of_those_that_eviction_left():
    """A row outside of what is held, or not among its best, would make the composition another method."""
    method = EvictThenSelect(**SNAP, read=4)
    memory, q, k, v = after(method)
    alone, *_ = after(make_method("snapkv", {"rows": 10, "window": 3}))
    assert held(memory) == held(alone)
    left = held(memory)
    got, _ = feed(method, memory, q[:, :, 24:25], k[:, :, 24:25], v[:, :, 24:25], "decode")
    for b, h in ((0, 0), (1, 3), (1, 1)):
        group, there = h // 2, sorted(left[b][h // 2] | {24})
        best = {}
        for head in (2 * group, 2 * group + 1):
            for j, w in zip(there, (k[b, group, there].double() @ q[b, head, 24].double()).tolist(), strict=True):
                best[j] = max(w, best.get(j, -torch.inf))
        rows = sorted(there, key=lambda j: -best[j])[:4]
        assert len(row_weights(q[b, h, 24], k[b, group], rows)) == 4
        torch.testing.assert_close(got[b, h, 0].double(), attended(q[b, h, 24], k, v, b, h, rows), atol=1e-5, rtol=1e-5)


def test_eviction_sees_the_same_attention_in_a_rotated_basis(basis):
    """Votes of a query that is not turned with the keys would keep other rows."""
    plain = EvictThenSelect(**SNAP, read=4)
    turned = EvictThenSelect(**SNAP, read=4, select="loki", select_args={"d": 1.0}, basis={})
    (one, q, k, v), (two, *_) = after(plain), after(turned, **basis)
    assert held(one) == held(two)
    a, b = (
        feed(m, memory, q[:, :, 24:], k[:, :, 24:], v[:, :, 24:], "decode")[0]
        for m, memory in ((plain, one), (turned, two))
    )
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_bytes_are_those_of_both(basis):
    """Bytes held by the eviction, or read to rank, that nobody counts would make the composition look better."""
    method = EvictThenSelect(**SNAP, read=0.5, select="loki", select_args={"d": 0.25}, basis={})
    memory, q, k, v = after(method, **basis)
    lead, bases, heads = DIM // 4 * 4, 2 * DIM * DIM * 4, 2 * 2
    assert float(memory.held_bytes) == heads * 10 * (ROW + lead) + bases
    _, ledger = feed(method, memory, q[:, :, 24:25], k[:, :, 24:25], v[:, :, 24:25], "decode")
    assert float(ledger.sums()[0, 1, 2]) == heads * 5
    assert float(ledger.sums()[0, 1, 4]) == heads * (5 * ROW + 11 * lead) + bases


def test_a_budget_in_bytes_holds_for_both(basis):
    """The selection's own rows would come on top of what was allowed."""
    amount = 2 * 12 * (ROW + DIM // 4 * 4) + 2 * DIM * DIM * 4
    method = EvictThenSelect(
        rows=None, bytes=amount, evict_args={"window": 3}, select="loki", select_args={"d": 0.25}, basis={}
    )
    memory, *_ = after(method, **basis)
    assert {len(head) for text in held(memory) for head in text} == {12}
    assert float(memory.held_bytes) - 2 * DIM * DIM * 4 == 2 * (amount - 2 * DIM * DIM * 4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"evict": "h2o"}, "h2o does not cut a prompt once"),
        ({"evict": "streaming_llm"}, "streaming_llm does not cut a prompt once"),
        ({"select": "quest"}, "quest does not rank rows by products"),
        ({"select": "loki"}, "loki needs a calibration: give basis"),
        ({"basis": {}}, "topk takes no calibration"),
        ({"evict_args": {"heads": "query"}}, "holds copies of heads"),
        ({"select_args": {"keep": 0.5}}, "keep inside: budgets are"),
        ({"evict_args": {"windw": 3}}, "snapkv has no argument 'windw': did you mean 'window'"),
        ({"keep": 0.5}, "give one of keep, rows, bytes"),
    ],
)
def test_what_does_not_fit_is_refused(args, words):
    """Two methods that break each other's assumptions would give numbers that mean nothing."""
    with pytest.raises(ValueError, match=words):
        EvictThenSelect(**args)
