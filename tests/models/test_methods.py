"""Methods against definitions written down here once more, densely and by hand."""

import math

import pytest
import torch
from conftest_models import DIM, make_method, make_model, run_rows, tokens
from safetensors.torch import load_file

from lacuna.models.bind import bind
from lacuna.models.call import Call
from lacuna.models.ledger import Ledger, summary
from lacuna.models.memory import Memory, Site


def site(**changes):
    given = {"layer": 0, "layers": 1, "kv_heads": (0, 1), "kv_heads_real": 2, "head_dim": DIM, "rotate": None}
    return Site(**{**given, **changes})


def one_row(method, q, k, v, **changes):
    """The method's answer for the last row, and the rows its ledger says were read."""
    place = site(kv_heads=tuple(range(k.shape[1])), kv_heads_real=k.shape[1], **changes)
    memory = Memory(place, method.constants(place))
    method.write(memory, k[:, :, :-1], v[:, :, :-1])
    method.write(memory, k[:, :, -1:], v[:, :, -1:])
    ledger, first = Ledger(), torch.zeros(k.shape[0], dtype=torch.long)
    out = method.attend(q, memory, Call(None, first, "decode", DIM**-0.5, memory.seen, 1), ledger)
    return out, float(ledger.sums()[0, 1, 2])


def draw(heads=4, groups=2, rows=21, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, 1, DIM, generator=generator)
    k, v = (torch.randn(batch, groups, rows, DIM, generator=generator) for _ in range(2))
    return q, k, v


def dense_over(q, k, v, keep):
    """softmax(q.k / sqrt D) v over the kept columns, one head at a time, float64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    share = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            columns = torch.tensor(sorted(keep[b][h]))
            keys, values = (x[b, h // share, columns].double() for x in (k, v))
            out[b, h, 0] = (keys @ q[b, h, 0].double() / math.sqrt(DIM)).softmax(0) @ values
    return out


def best(scores, count):
    return set(sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))[:count])


@pytest.mark.parametrize("heads", ["kv", "query"])
def test_topk_keeps_the_largest_products(heads):
    """Exact top-k is the yardstick of every selection; here it is worked out with Python's own sort."""
    q, k, v = draw()
    keep = []
    for b in range(2):
        products = [[float(q[b, h, 0] @ k[b, h // 2, s]) for s in range(21)] for h in range(4)]
        if heads == "kv":
            products = [
                [max(products[h // 2 * 2][s], products[h // 2 * 2 + 1][s]) for s in range(21)] for h in range(4)
            ]
        keep.append([best(p, 5) for p in products])
    out, read = one_row(make_method("topk", {"keep": 0.25, "heads": heads}), q, k, v)
    torch.testing.assert_close(out.double(), dense_over(q, k, v, keep), atol=1e-5, rtol=1e-5)
    unions = sum(len(keep[b][2 * g] | keep[b][2 * g + 1]) for b in range(2) for g in range(2))
    assert read == unions


def test_loki_ranks_by_leading_components(basis):
    """Algorithm 1: the rows are those with the largest products of the first d components; the products are exact."""
    q, k, v = draw(seed=5)
    artifacts = basis()
    p = load_file(artifacts["basis"])["layer.0.basis"]
    keep = []
    for b in range(2):
        low = [
            [float((q[b, h, 0] @ p[h // 2])[:4] @ (k[b, h // 2, s] @ p[h // 2])[:4]) for s in range(21)]
            for h in range(4)
        ]
        keep.append([best(scores, 5) for scores in low])
    method = make_method("loki", {"keep": 0.25, "d": 4, "heads": "query"})
    out, _ = one_row(method, q, k, v, artifacts=artifacts)
    torch.testing.assert_close(out.double(), dense_over(q, k, v, keep), atol=1e-5, rtol=1e-5)


def test_loki_with_all_components_is_topk(basis):
    """Lemma 4.1: a common rotation of queries and keys leaves the products as they are."""
    q, k, v = draw(seed=6)
    loki, _ = one_row(make_method("loki", {"rows": 6, "d": 1.0}), q, k, v, artifacts=basis())
    topk, _ = one_row(make_method("topk", {"rows": 6}), q, k, v)
    torch.testing.assert_close(loki, topk, atol=1e-5, rtol=1e-5)


def test_loki_explained_variance_rank(basis):
    """The rank is, over the heads, the largest number of components whose cumulated share stays below the target."""
    artifacts = basis()
    shares = load_file(artifacts["basis"])["layer.0.variance"].double()
    want = 0
    for head in shares.tolist():
        total, count = 0.0, 0
        for share in head:
            total += share
            count += total < 0.7
        want = max(want, count)
    constants = make_method("loki", {"d": None, "variance": 0.7}).constants(site(artifacts=artifacts))
    assert constants["lead"].shape[-1] == want


@pytest.mark.parametrize(("rule", "counts"), [("row", [2, 3, 3, 3]), ("call", [3, 3, 3, 3])])
def test_share_counts_from_the_row_or_from_the_call(rule, counts, model):
    """Loki's code gives every row the same k, so that its early rows stay denser than the share says."""
    ids = tokens(1, 14)
    _, ledger = run_rows(model, make_method("topk", {"keep": 0.25, "rule": rule}), ids, {}, 10, True)
    mean = summary([ledger.sums()])["decode"]["rows_attended_mean"]
    assert mean == sum(counts) / 4


def test_one_row_is_not_everything(model):
    """Where one number is both a share and a count, 1 means all of the rows, and a budget of one row cannot be asked."""
    read = {}
    for word, one in (("rows", 1), ("keep", 1.0)):
        _, ledger = run_rows(model, make_method("topk", {word: one}), tokens(1, 30), {}, 20, True)
        read[word] = summary([ledger.sums()])["decode"]["rows_attended_mean"]
    assert read == {"rows": 1, "keep": sum(range(21, 31)) / 10}


def test_streaming_keeps_sinks_and_window(model):
    """Position-preserving StreamingLLM is dense attention under a mask of sinks and a sliding window."""
    ids, sinks, window = tokens(2, 40), 2, 6
    i, j = torch.arange(40)[:, None], torch.arange(40)[None]
    seen = (j <= i) & ((j < sinks) | (j > i - window))
    mask = torch.zeros(40, 40).masked_fill(~seen, -torch.inf)[None, None].expand(2, 1, 40, 40)
    want = model(ids, attention_mask=mask).logits
    method = make_method("streaming_llm", {"sinks": sinks, "rows": sinks + window, "positions": "text"})
    got, _ = run_rows(model, method, ids, {}, 12, False, prefill="sparse")
    torch.testing.assert_close(got, want[:, 11:], atol=2e-5, rtol=1e-4)


def test_streaming_positions_inside_the_cache():
    """The paper's positions: in a model of one layer, what is kept gives the logits of the kept text alone, from 0 on."""
    model, sinks, window = make_model(num_hidden_layers=1), 2, 6
    ids = tokens(1, 40)
    method = make_method("streaming_llm", {"sinks": sinks, "rows": sinks + window})
    got, _ = run_rows(model, method, ids, {}, 12, False)
    for row in range(12, 40):
        kept = torch.cat([ids[:, :sinks], ids[:, row + 1 - window : row + 1]], 1)
        torch.testing.assert_close(got[:, row - 11], model(kept).logits[:, -1], atol=2e-5, rtol=1e-4)


def test_h2o_positions_inside_the_cache():
    """What is kept must look to a model of one layer and one head like a text of its own, from position 0 on."""
    model = make_model(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, hidden_size=DIM)
    ids, method, kept = tokens(1, 40), make_method("h2o", {"rows": 7, "recent": 3, "positions": "cache"}), []
    with bind(model, method) as binding:
        cache = binding.cache()
        model(ids[:, :12], past_key_values=cache, use_cache=True)
        for i in range(12, 40):
            got = model(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits[:, -1]
            kept.append((cache.layers[0].memory.columns[0, 0], got))
    for rows, got in kept:
        assert len(rows) == 7
        torch.testing.assert_close(got, model(ids[:, rows]).logits[:, -1], atol=2e-5, rtol=1e-4)
    assert any(rows.tolist() != list(range(rows[-1] - 6, rows[-1] + 1)) for rows, _ in kept)


@pytest.mark.parametrize("args", [{"positions": "cache"}, {"positions": "text"}])
def test_streaming_holds_its_budget(args, model):
    """A cache that grows beyond its budget is no compression."""
    method = make_method("streaming_llm", {"sinks": 2, "rows": 8, **args})
    with bind(model, method) as binding:
        cache, ids = binding.cache(), tokens(2, 40)
        model(ids[:, :20], past_key_values=cache, use_cache=True)
        for i in range(20, 40):
            model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            assert all(layer.memory.keys.view.shape[2] == 8 for layer in cache.layers)
    assert cache.get_seq_length() == 40


def test_a_shorter_text_is_not_charged_for_a_longer_one(model):
    """A share of a text is fewer rows of a shorter one: what fills the batch up to the longer one's is held by nobody."""
    ids = tokens(2, 40)
    ids[1, :20] = 0
    with bind(model, make_method("streaming_llm", {"keep": 0.5, "sinks": 2})) as binding:
        cache = binding.cache()
        model(ids, attention_mask=(ids > 0).long(), past_key_values=cache, use_cache=True)
        rows, sinks = (20 + 10) * 2 * 2 * DIM * 4, 2 * 2 * 2 * DIM * 4
        assert [float(m.held_bytes) for m in binding.memories(cache)] == [rows + sinks] * 2


def test_streaming_cuts_once_when_it_grows(model):
    """KVCache-Factory's variant: sinks and window of the prompt stay, every later row is added."""
    method = make_method("streaming_llm", {"sinks": 2, "rows": 8, "positions": "text", "decode": "grow"})
    with bind(model, method) as binding:
        cache, ids = binding.cache(), tokens(1, 40)
        model(ids[:, :20], past_key_values=cache, use_cache=True)
        for i in range(20, 25):
            model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
    assert cache.layers[0].memory.columns.tolist() == [[[0, 1, *range(14, 25)]]]


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("loki", {"d": None}, "either d or variance"),
        ("loki", {"d": 4, "variance": 0.9}, "either d or variance"),
        ("streaming_llm", {"decode": "grow"}, "positions: text"),
    ],
)
def test_arguments_that_do_not_go_together(name, args, words):
    """A setting that is ignored is an error."""
    with pytest.raises(ValueError, match=words):
        make_method(name, args)


def test_a_basis_of_another_model_is_refused(basis, model):
    """A basis of other heads would select garbage without a word."""
    with (
        bind(model, make_method("loki", {}), artifacts=basis(heads=4)),
        pytest.raises(ValueError, match="calibrate on"),
    ):
        model(tokens(1, 8))
