"""A method's step beside the same step with dense attention."""

from types import SimpleNamespace

import pytest
import torch

from lacuna.harness import dense_cost
from lacuna.harness.dense_cost import against_dense, dense_attention_ms
from lacuna.kernels.op import load_op

GAINS = {"ideal_gain": 2.0, "read_share": 0.25}


def test_gain_and_break_even_by_hand():
    """A gain would be told that leaves out the launches beside attention, or a context at which the method still loses."""
    stages = {"score": 1.0, "select": 1.0, "gather": 1.5, "merge": 0.5, "append": 9.0, "matmul": 5.0}
    found = against_dense(20.0, stages, 8.0, 4000, GAINS)
    assert found["gain"] == pytest.approx((20 - 4 + 8) / 20)
    assert found["gain_of_ideal"] == pytest.approx(1.2 / 2)
    # at dense speed its bytes take 2 ms of its 4; the other 2 are saved where 0.75 of dense attention is 2 ms
    assert found["break_even_tokens"] == pytest.approx(4000 * 2 / 6)
    length = found["break_even_tokens"]
    assert 2 + 0.25 * 8 * length / 4000 == pytest.approx(8 * length / 4000)


def test_a_method_that_reads_everything_has_no_break_even():
    """A length would be told, or a division by zero end the task, where bytes allow no gain."""
    found = against_dense(10.0, {"attend": 3.0}, 3.0, 100, {"ideal_gain": 1.0, "read_share": 1.0})
    assert found == {"dense_attention_ms": 3.0, "gain": 1.0, "gain_of_ideal": 1.0}
    assert against_dense(10.0, {"attend": 1.0}, 8.0, 100, GAINS)["break_even_tokens"] == 0.0


def session_of(ranks):
    config = SimpleNamespace(
        num_key_value_heads=3, num_attention_heads=6, num_hidden_layers=5, hidden_size=384, head_dim=64
    )
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config), dtype=torch.float32)
    world = SimpleNamespace(ranks=SimpleNamespace(size=ranks))
    return SimpleNamespace(lm=SimpleNamespace(model=model, world=world), device=torch.device("cpu"))


@pytest.mark.parametrize(("ranks", "heads", "groups"), [(1, 6, 3), (2, 4, 2)])
def test_one_layer_of_this_rank_stands_for_all(ranks, heads, groups, monkeypatch):
    """Dense attention of other heads, of one layer only or of another length would be what a method is held against."""
    shapes, op = [], load_op("dense_decode")
    monkeypatch.setattr(dense_cost, "sample_ms", lambda call, *_: (shapes.append(call().shape), (2.0, 4.0, 3.0))[1])
    monkeypatch.setitem(
        vars(op), "eager", lambda q, k, *_: shapes.append((tuple(q.shape), tuple(k.shape))) or torch.zeros_like(q)
    )
    assert dense_attention_ms(session_of(ranks), 2, 90) == 5 * 3.0
    assert shapes[0] == ((2, heads, 64), (2, groups, 90, 64))


def test_what_does_not_fit_is_no_number(monkeypatch):
    """The run that was timed would end as out of memory for the sake of a comparison."""

    def full(*_):
        raise torch.OutOfMemoryError("Tried to allocate 99 GiB")

    monkeypatch.setattr(dense_cost, "sample_ms", full)
    assert dense_attention_ms(session_of(1), 2, 90) is None
