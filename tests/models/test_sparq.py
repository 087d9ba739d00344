"""SparQ and PCAAttn against definitions by hand, one head at a time in float64."""

import math

import pytest
import torch
from conftest_models import DIM, make_method, run_rows, tokens
from safetensors.torch import load_file

from lacuna.models import running
from lacuna.models.bind import bind
from lacuna.models.call import Call
from lacuna.models.ledger import Ledger, summary
from lacuna.models.memory import Memory, Site

HEADS, GROUPS, ROWS = 4, 2, 21


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, HEADS, 1, DIM, generator=generator)
    return q, *(torch.randn(2, GROUPS, ROWS, DIM, generator=generator) for _ in range(2))


def one_row(method, q, k, v, artifacts=None):
    """The method's answer for the last row; ledger and memory."""
    place = Site(0, 1, tuple(range(GROUPS)), GROUPS, DIM, None, artifacts or {})
    memory, first = Memory(place, method.constants(place)), torch.zeros(2, dtype=torch.long)
    method.write(memory, k[:, :, :-1], v[:, :, :-1])
    memory.aux.pop("whole", None)  # a prompt's whole keys, which go once it was attended
    method.write(memory, k[:, :, -1:], v[:, :, -1:])
    ledger, call = Ledger(), Call(None, first, "decode", DIM**-0.5, memory.seen, 1)
    out = method.attend(q, memory, call, ledger)
    return out, ledger, memory


def sparq_by_hand(q_JD, k, v, budget, r, local, rest):
    """Algorithm 1 for the query heads of one key/value head; returns their outputs and the rows kept."""
    part = q_JD.abs().sum(0).topk(r).indices
    share = q_JD[:, part].abs().sum(1) / q_JD.abs().sum(1)
    weights = (q_JD[:, part] @ k[:, part].T / (DIM * share).sqrt()[:, None]).softmax(1)
    rank = weights.sum(0)
    rank[-local:] = math.inf
    kept = rank.topk(budget).indices
    inside = weights[:, kept].sum(1, keepdim=True)
    exact = (q_JD @ k[kept].T / math.sqrt(DIM)).softmax(1) @ v[kept]
    return (inside * exact + (1 - inside) * v.mean(0)) if rest == "mean" else exact


@pytest.mark.parametrize("rest", ["mean", "none"])
@pytest.mark.parametrize("local", [0.25, 5])
def test_sparq_by_hand(rest, local):
    """Components over the group, rescaled softmax, local rows, scores over the group, dropped weight to the mean."""
    q, k, v = draw()
    method = make_method("sparq", {"rows": 8, "r": 5, "local": local, "rest": rest})
    out, _, _ = one_row(method, q, k, v)
    for b in range(2):
        for g in range(GROUPS):
            heads = slice(2 * g, 2 * g + 2)
            want = sparq_by_hand(
                q[b, heads, 0].double(), k[b, g].double(), v[b, g].double(), 8, 5, 2 if local == 0.25 else 5, rest
            )
            torch.testing.assert_close(out[b, heads, 0].double(), want, atol=1e-5, rtol=1e-4)


def test_sparq_released_keeps_one_row_more():
    """The authors' code counts the row itself apart: compared with the paper's rule it has a row more to find."""
    q, k, v = draw()
    method = make_method("sparq", {"rows": 8, "r": 5, "local": 3, "budget_rule": "released"})
    out, ledger, _ = one_row(method, q, k, v)
    want = sparq_by_hand(q[0, :2, 0].double(), k[0, 0].double(), v[0, 0].double(), 9, 5, 4, "mean")
    torch.testing.assert_close(out[0, :2, 0].double(), want, atol=1e-5, rtol=1e-4)
    assert float(ledger.sums()[0, 1, 2]) == 2 * GROUPS * 9
    with pytest.raises(ValueError, match="sparq: budget_rule: released reads a row more than asked: give keep or rows"):
        make_method("sparq", {"rows": None, "bytes": 4000, "budget_rule": "released"})


def test_sparq_holds_keys_twice_and_reads_r_components():
    """The second copy of the keys is half of the cache again; a table that left it out would flatter the method."""
    _, ledger, memory = one_row(make_method("sparq", {"rows": 8, "r": 4}), *draw())
    row = DIM * 4
    assert memory.held_bytes == 2 * GROUPS * (ROWS * 3 * row + row)
    assert float(ledger.sums()[0, 1, 4]) == 2 * GROUPS * (8 * 2 * row + ROWS * 4 * 4 + row)


def test_sparq_mean_is_of_what_a_row_may_see(model):
    """A mean over the whole cache, as a port of SparQ had it, lets a row see later values."""
    method, ids = make_method("sparq", {"rows": 4, "r": 3}), tokens(2, 40)
    other = ids.clone()
    other[:, 30:] = tokens(2, 10, seed=8)
    once, _ = run_rows(model, method, ids, {}, 17, True, "sparse")
    changed, _ = run_rows(model, method, other, {}, 17, True, "sparse")
    torch.testing.assert_close(once[:, : 30 - 16], changed[:, : 30 - 16])


@pytest.mark.parametrize("name", ["sparq", "top_theta"])
def test_the_running_mean_does_not_stop_in_half_precision(name, basis):
    """A sum of values kept in half precision stops growing after some hundred rows, and the mean falls with the length."""
    method = make_method(name, {"rows": 8} if name == "sparq" else {"rows": 8, "sdc": "exact", "vmc": "mean"})
    place = Site(0, 1, tuple(range(GROUPS)), GROUPS, DIM, None, basis())
    memory = Memory(place, {**method.constants(place), **method.tables(place)})
    memory.first = torch.zeros(1, dtype=torch.long)
    ones = torch.ones(1, GROUPS, 1, DIM, dtype=torch.bfloat16)
    for _ in range(2000):
        method.write(memory, ones, ones)
    call = Call(None, memory.first, "decode", 1.0, memory.seen, 1)
    assert torch.equal(running.mean_BGTD(memory, call), ones.float())


def test_pca_attn_by_hand(basis):
    """Softmax over all rows of the leading components' products, with the whole dimension's factor."""
    (q, k, v), files = draw(), basis()
    p = load_file(files["basis"])["layer.0.basis"].double()
    out, _, _ = one_row(make_method("pca_attn", {"d": 6}), q, k, v, files)
    for b in range(2):
        for h in range(HEADS):
            lead = p[h // 2][:, :6]
            scores = (k[b, h // 2].double() @ lead) @ (q[b, h, 0].double() @ lead) / math.sqrt(DIM)
            torch.testing.assert_close(
                out[b, h, 0].double(), scores.softmax(0) @ v[b, h // 2].double(), atol=1e-5, rtol=1e-4
            )


def test_pca_attn_holds_short_keys(basis):
    """Its one gain is a smaller cache: d of D components of each key, while dense stays what dense would hold."""
    _, ledger, memory = one_row(make_method("pca_attn", {"d": 4}), *draw(), basis())
    assert memory.held_bytes == 2 * GROUPS * ROWS * (4 + DIM) * 4 + GROUPS * DIM * 4 * 4
    assert memory.dense_bytes == 2 * GROUPS * ROWS * 2 * DIM * 4
    *_, read, dense = ledger.sums()[0, 1].tolist()
    assert (read, dense) == (memory.held_bytes, memory.dense_bytes)


def test_pca_attn_prompt_is_dense(basis, model):
    """With a dense prefill the prompt must be attended with whole keys, though only short ones are kept."""
    ids, method = tokens(2, 30), make_method("pca_attn", {"d": 4})
    with bind(model, method, artifacts=basis()) as binding:
        got = model(ids, use_cache=True).logits
        told = summary([binding.ledger.sums()])
    torch.testing.assert_close(got, model(ids).logits, atol=2e-5, rtol=1e-4)
    assert told["prefill"]["bytes_read_per_token"] == told["prefill"]["bytes_dense_per_token"]
    assert told["bytes_held"] < told["bytes_held_dense"]
