"""Budgets, bytes and the defects known of other implementations of eviction, each with a test of its name."""

import pytest
import torch
from conftest_models import DIM, gap_cases, make_method, make_model, run_rows, tokens
from evict_reference import ONCE, ROW, SMALL, draw, fresh, small

from lacuna.models import attend
from lacuna.models.bind import bind
from lacuna.models.call import Call
from lacuna.models.ledger import summary


@pytest.mark.parametrize("name", [*ONCE, "h2o", "tova"])
def test_a_second_prompt_is_compressed_like_the_first(name, model):
    """State left from the first prompt switched compression off in other code: all scores were of the full cache."""
    method, rows = make_method(name, SMALL[name]), []
    with bind(model, method) as binding:
        for _ in range(2):
            cache = binding.cache()
            model(tokens(1, 30), past_key_values=cache, use_cache=True)
            rows.append([layer.memory.text_rows_BN(binding.first).float().mean() for layer in cache.layers])
    assert rows[0] == rows[1]
    assert sum(rows[0]) / 2 == 8


@pytest.mark.parametrize("name", [*ONCE, "h2o", "tova"])
@pytest.mark.parametrize("sizes", [(30, 30), (10, 1, 25), (20, 2, 2, 2)])
def test_a_prompt_in_pieces_respects_the_budget(name, sizes, model):
    """A turn of a dialogue, or a chunk of a long prompt, that is added uncompressed makes the cache grow without end."""
    method, ids = make_method(name, SMALL[name]), tokens(2, sum(sizes))
    with bind(model, method) as binding:
        cache, start = binding.cache(), 0
        binding.feeding = "prefill"
        for size in sizes:
            model(ids[:, start : start + size], past_key_values=cache, use_cache=True)
            start += size
            rows = sum(layer.memory.text_rows_BN(binding.first).double().mean() for layer in cache.layers)
            assert float(rows) == 2 * 8


@pytest.mark.parametrize(("name", "copies"), [("kv", 1), ("query", 2)])
def test_gqa_cache_is_not_multiplied(name, copies, model):
    """Repeating keys for every query head can hold more than the full cache; where it is asked for it is charged."""
    method, ids = make_method("snapkv", {"rows": 8, "window": 3, "heads": name}), tokens(2, 31)
    with bind(model, method) as binding:
        cache = binding.cache()
        model(ids[:, :30], past_key_values=cache, use_cache=True)
        assert all(float(layer.memory.held_bytes) == copies * 2 * 2 * 8 * ROW for layer in cache.layers)
        model(ids[:, 30:], past_key_values=cache, use_cache=True)
        told = summary([binding.ledger.sums()])["decode"]
    assert told["bytes_read_per_token"] == copies * 2 * 2 * 9 * ROW
    assert told["rows_attended_mean"] == told["rows_kept_mean"] == 9


@pytest.mark.parametrize("name", [*ONCE, "h2o", "tova"])
def test_a_budget_of_everything_is_full_attention_to_the_bit(name, model):
    """If there is nothing to drop the cache must not even be touched."""
    ids, changes = tokens(2, 40), {"window": 3} if "window" in SMALL[name] else {}
    full, _ = run_rows(model, make_method("full", {}), ids, {}, 17, False)
    got, _ = run_rows(model, make_method(name, {"rows": 40, **changes}), ids, {}, 17, False)
    assert torch.equal(full, got)


def test_memory_is_given_back(model):
    """Compression that keeps the prompt's buffer allocated saves no memory at all."""
    with bind(model, make_method("snapkv", SMALL["snapkv"])) as binding:
        cache = binding.cache()
        model(tokens(1, 400), past_key_values=cache, use_cache=True)
        assert all(layer.memory.keys._buffer.shape[2] <= 8 + 64 for layer in cache.layers)


@pytest.mark.parametrize("budget", [{"keep": 0.3}, {"rows": 8}])
@pytest.mark.parametrize("name", [*ONCE, "h2o", "tova"])
def test_never_above_the_budget(name, budget, model):
    """Texts of unequal length in a batch have budgets of their own; none may borrow from its neighbour."""
    method, lengths = make_method(name, small(name, budget)), torch.tensor([40, 30, 9])
    mask = (torch.arange(40) >= 40 - lengths[:, None]).long()
    with bind(model, method) as binding:
        cache = binding.cache()
        model(tokens(3, 40), attention_mask=mask, past_key_values=cache, use_cache=True)
        rows = sum(layer.memory.text_rows_BN(binding.first).double().mean(1) for layer in cache.layers)
    assert rows.tolist() == [2 * x for x in ([12, 9, 2] if budget == {"keep": 0.3} else [8, 8, 8])]


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_rows_kept_are_the_same_at_once_and_one_by_one(name, args, basis, model):
    """What is held is a result; it must not depend on how the rows were fed."""
    ids = tokens(2, 40)
    told = [
        summary([run_rows(model, make_method(name, args), ids, basis(), 17, how)[1].sums()]) for how in (True, False)
    ]
    assert told[0]["decode"]["rows_kept_mean"] == pytest.approx(told[1]["decode"]["rows_kept_mean"], rel=1e-12)


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_beams_take_what_they_hold_with_them(name, args, basis, model):
    """Beam search swaps texts: marks, boxes and row numbers must follow, or heads attend another text's rows."""
    ids, order = tokens(2, 24), torch.tensor([1, 1, 0])
    with bind(model, make_method(name, args), artifacts=basis()) as binding:
        cache = binding.cache()
        model(ids[:, :18], past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            layer.reorder_cache(order)
        binding.first = binding.first[order]
        swapped = [model(ids[order, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(18, 24)]
    with bind(model, make_method(name, args), artifacts=basis()) as binding:
        cache = binding.cache()
        model(ids[:, :18], past_key_values=cache, use_cache=True)
        plain = [model(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(18, 24)]
    torch.testing.assert_close(torch.cat(swapped, 1), torch.cat(plain, 1)[order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["h2o", "tova"])
def test_without_a_prompt_the_budget_grows_with_the_text(name, model):
    """Scoring from the first token has no prompt: a share then counts from the row, and a count from the start."""
    for budget, want in (({"keep": 0.5}, 15), ({"rows": 8}, 8)):
        _, ledger = run_rows(model, make_method(name, budget), tokens(1, 30), {}, 1, True, "sparse")
        assert summary([ledger.sums()])["decode"]["rows_kept_mean"] <= want
        with bind(model, make_method(name, budget)) as binding:
            binding.feeding, cache = "decode", binding.cache()
            model(tokens(1, 30), past_key_values=cache, use_cache=True)
            assert all(layer.memory.keys.view.shape[2] == want for layer in cache.layers)


def test_marks_are_charged(model):
    """H2O reads and holds an account of every row beside it; a free lunch would favour it at equal bytes."""
    _, ledger = run_rows(model, make_method("h2o", {"rows": 8}), tokens(2, 40), {}, 20, False)
    told = summary([ledger.sums()])
    assert told["decode"]["rows_attended_mean"] == 8
    assert told["decode"]["bytes_read_per_token"] == 2 * 2 * 8 * (ROW + 4)


def test_visible_rows_follow_each_head():
    """Heads that hold different tokens see different parts of the mask: padding, holes and a sliding window."""
    q, k, v = draw(12)
    memory = fresh(make_method("full", {}))
    memory.append(k, v)
    memory.keep(torch.tensor([[[-1, 2, 5, 11], [1, 4, 8, 11]]]).expand(2, -1, -1))
    mask = torch.zeros(2, 1, 12, dtype=torch.bool)
    mask[0, :, 4:], mask[1, :, 8:] = True, True
    call = Call(mask, torch.tensor([4, 8]), "decode", DIM**-0.5, 12, 1)
    seen = attend.visible_BNTS(memory, call)[:, :, 0].int().tolist()
    assert seen == [[[0, 0, 1, 1], [0, 1, 1, 1]], [[0, 0, 0, 1], [0, 0, 1, 1]]]
    assert attend.span(memory, call)[0].tolist() == [2, 1, 3, 2]
    want = attend.masked(q[:, :, -1:], memory, attend.visible_BNTS(memory, call), call)
    torch.testing.assert_close(attend.dense(q[:, :, -1:], memory, call), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "args"), [("adakv", {}), ("tova", {})])
def test_a_budget_over_all_heads_refuses_a_part_of_them(name, args):
    """Each rank would spread a budget over its own heads only, and the results depend on the number of ranks."""
    with pytest.raises(ValueError, match="this rank holds 1: run on 1 rank"):
        fresh(make_method(name, args), kv_heads=(0,), kv_heads_real=2)


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("snapkv", {"kernel": 4}, "kernel is odd, got 4: try 5"),
        ("snapkv", {"rows": 32}, "leaves nothing beside the window of 32"),
        ("pyramidkv", {"rows": 8}, "leaves nothing beside the window of 8"),
        ("adakv", {"heads": "query", "group": "max"}, "no group is joined"),
        ("h2o", {"rows": 8, "recent": 8}, "leaves no heavy ones"),
        ("quest", {"rows": 8}, "less than a page of 16"),
    ],
)
def test_arguments_that_do_not_go_together(name, args, words):
    """A setting that is ignored is an error."""
    with pytest.raises(ValueError, match=words):
        make_method(name, args)


def test_grouped_families():
    """One key/value head for all query heads, and one for each, are the ends of the same code."""
    for groups in (1, 4):
        model = make_model(num_key_value_heads=groups)
        for name, args in SMALL.items():
            _, ledger = run_rows(model, make_method(name, args), tokens(2, 40), {}, 30, False)
            assert summary([ledger.sums()])["decode"]["density"] < 0.55
