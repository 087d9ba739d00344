"""The linear residual against its definition: each row's weights written out in float64, exp where exact, else the map."""

import math

import pytest
import torch
from conftest_models import DIM, make_method, make_model, run_rows, tokens
from evict_reference import draw, feed, fresh, held

from lacuna.models.bind import bind
from lacuna.models.feature_map import generators, load_map
from lacuna.models.ledger import summary
from lacuna.models.methods.linear_residual import LinearResidual
from lacuna.results.plugins import ROOT

SINKS, ROWS = 2, 9
WINDOWED = {"keep": None, "rows": ROWS, "sinks": SINKS, "recent": 1.0}


def x_of(q, k):
    """The product q . k / sqrt D of one query and some keys, by components."""
    return q.double() * k.double() / math.sqrt(DIM)


def taylor(q, k):
    s = x_of(q, k).sum(-1)
    return 1 + s + s**2 / 2


def taylor_around_mean(q, k):
    x = x_of(q, k - k.double().mean(0)).sum(-1)
    return x_of(q, k.double().mean(0)).sum(-1).exp() * (1 + x + x**2 / 2)


def diagonal_around_mean(q, k):
    terms = x_of(q, k - k.double().mean(0))
    return x_of(q, k.double().mean(0)).sum(-1).exp() * (1 + terms.sum(-1) + (terms**2).sum(-1) / 2)


def elu_plus_one(x):
    y = x.double() / DIM**0.25
    return torch.where(y > 0, y + 1, y.exp())


def elu(q, k):
    return (elu_plus_one(q) * elu_plus_one(k)).sum(-1)


MAPS = [
    ({"features": "taylor", "width": DIM}, taylor),
    ({"features": "taylor", "width": DIM, "centre": "mean"}, taylor_around_mean),
    ({"features": "taylor_diagonal", "centre": "mean"}, diagonal_around_mean),
    ({"features": "elu"}, elu),
]


def by_hand(q, k, v, exact, kernel, row):
    """One row's output from the rows attended exactly and those that were dropped."""
    rest = [j for j in range(row + 1) if j not in exact]
    exact = sorted(exact)
    weights = x_of(q, k[exact]).sum(-1).exp()
    values = v[exact].double()
    if rest:
        weights = torch.cat([weights, kernel(q, k[rest])])
        values = torch.cat([values, v[rest].double()])
    return weights @ values / weights.sum()


def windowed(row):
    """Sinks and the last rows, `ROWS` in all."""
    return {j for j in range(row + 1) if j < SINKS or j > row - (ROWS - SINKS)}


@pytest.mark.parametrize(("args", "kernel"), MAPS, ids=[f"{a['features']}-{a.get('centre')}" for a, _ in MAPS])
@pytest.mark.parametrize("steps", [1, 17])
def test_a_row_is_the_written_out_attention(args, kernel, steps):
    """The state would be some other sum than that of what was dropped, or weigh other than it should beside exact rows."""
    method = LinearResidual(**WINDOWED, **args)
    q, k, v = draw(30)
    memory = fresh(method)
    feed(method, memory, q[:, :, :13], k[:, :, :13], v[:, :, :13], "prefill")
    outs = [
        feed(method, memory, *(x[:, :, i : i + steps] for x in (q, k, v)), "decode")[0] for i in range(13, 30, steps)
    ]
    got = torch.cat(outs, 2)
    for b, h, row in [(0, 0, 13), (0, 3, 20), (1, 1, 29), (1, 2, 16)]:
        want = by_hand(q[b, h, row], k[b, h // 2], v[b, h // 2], windowed(row), kernel, row)
        torch.testing.assert_close(got[b, h, row - 13].double(), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("centre", ["none", "mean"])
def test_heavy_hitters_are_those_of_h2o(centre):
    """Other rows than the heavy hitters would be summed up, and the exact set be no better than a window."""
    q, k, v = draw(40)
    ours, theirs = LinearResidual(keep=None, rows=8, sinks=0, centre=centre), make_method("h2o", {"rows": 8})
    memories = [fresh(ours), fresh(theirs)]
    for method, memory in zip((ours, theirs), memories, strict=True):
        feed(method, memory, q[:, :, :20], k[:, :, :20], v[:, :, :20], "prefill")
        feed(method, memory, q[:, :, 20:], k[:, :, 20:], v[:, :, 20:], "decode")
    assert held(memories[0]) == held(memories[1])


def test_sinks_stay_whatever_is_heavy():
    """Sinks that attention could push out would be no sinks."""
    q, k, v = draw(40)
    method = LinearResidual(keep=None, rows=8, sinks=3)
    memory = fresh(method)
    feed(method, memory, q, k, v, "decode")
    assert all({0, 1, 2} <= head and len(head) == 8 for text in held(memory) for head in text)


@pytest.mark.parametrize("args", [{}, {"centre": "mean"}, {"features": "favor", "width": 64}])
def test_the_state_is_the_same_however_rows_are_fed(args):
    """A row dropped twice, or never, would stay unseen until the state had drifted far from what was dropped."""
    method = LinearResidual(keep=None, rows=8, sinks=1, **args)
    q, k, v = draw(300, batch=1)  # more rows than one piece of the vectorised pass has
    once, steps = fresh(method, batch=1), fresh(method, batch=1)
    got, _ = feed(method, once, q, k, v, "decode")
    rows = [feed(method, steps, *(x[:, :, i : i + 1] for x in (q, k, v)), "decode")[0] for i in range(300)]
    torch.testing.assert_close(got, torch.cat(rows, 2), atol=2e-4, rtol=1e-3)
    assert held(once) == held(steps)
    factors = [m.extra["residual.scale"].exp() for m in (once, steps)]
    sums = [m.extra["residual.sums"] * f[..., None, None] for m, f in zip((once, steps), factors, strict=True)]
    norms = [m.extra["residual.norm"] * f[..., None] for m, f in zip((once, steps), factors, strict=True)]
    if not args:
        torch.testing.assert_close(*sums, atol=1e-2, rtol=1e-4)
        gone = [j for j in range(300) if j not in held(once)[0][1]]
        torch.testing.assert_close(*norms, atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(norms[0][0, 1, 0], torch.tensor(float(len(gone))))
        torch.testing.assert_close(sums[0][0, 1, 0], v[0, 1, gone].sum(0), atol=1e-3, rtol=1e-4)


def test_a_second_prompt_hears_what_the_first_one_dropped():
    """Rows of a further dense prompt would take the dropped ones for gone."""
    method = LinearResidual(**WINDOWED, width=DIM)
    q, k, v = draw(30)
    memory = fresh(method)
    feed(method, memory, q[:, :, :20], k[:, :, :20], v[:, :, :20], "prefill")
    left = windowed(19)
    got, _ = feed(method, memory, q[:, :, 20:], k[:, :, 20:], v[:, :, 20:], "prefill")
    for row in (20, 27):
        want = by_hand(q[1, 3, row], k[1, 1], v[1, 1], left | set(range(20, row + 1)), taylor, row)
        torch.testing.assert_close(got[1, 3, row - 20].double(), want, atol=1e-4, rtol=1e-4)
    assert {len(head) for text in held(memory) for head in text} == {ROWS}


@pytest.mark.parametrize("features", ["taylor", "favor", "elu"])
def test_large_scores_do_not_overflow(features):
    """The exponential of a score beyond 88 is infinite in fp32: without logarithms such rows come out as NaN."""
    method = LinearResidual(**WINDOWED, features=features)
    q, k, v = draw(30)
    memory = fresh(method)
    got, _ = feed(method, memory, 40 * q, 40 * k, v, "decode")
    assert got.isfinite().all()
    assert got.abs().max() <= v.abs().max() + 1e-4


def test_random_features_converge_to_the_softmax():
    """FAVOR+ is unbiased: a slip in its lengths or directions shows as an error that more features do not mend."""
    q, k, v = draw(24, batch=1)
    q, k = q / 4, k / 2
    full, _ = feed(make_method("full", {}), fresh(make_method("full", {}), batch=1), q, k, v, "decode")
    errors = []
    for width in (64, 1024, 16384):
        method = LinearResidual(**WINDOWED, features="favor", width=width)
        got, _ = feed(method, fresh(method, batch=1), q, k, v, "decode")
        errors.append(float((got - full).norm() / full.norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_a_projection_on_all_dimensions_changes_nothing():
    """Products of projected rows must be those of the rows themselves in the mean, or states of two widths differ."""
    q, k = torch.randn(1, 2, 50, DIM), torch.randn(1, 2, 50, DIM)
    place = fresh(LinearResidual(keep=None, rows=8)).site
    total = 0.0
    for seed in range(200):
        weights = load_map("taylor", 4, seed).weights(place)
        total += (q @ weights["projection"]) @ (k @ weights["projection"]).mT / 200
    exact = q @ k.mT
    assert float((total - exact).norm() / exact.norm()) < 0.25
    assert load_map("taylor", DIM, 0).weights(place) == {}


def test_where_a_normaliser_is_not_positive_exact_rows_stand_alone():
    """A negative sum of weights would turn values over."""
    method = LinearResidual(**WINDOWED, features="taylor_diagonal")
    q, k, v = draw(20, batch=1)
    k = k.abs()
    q = -q.abs()
    got, _ = feed(method, fresh(method, batch=1), q, k, v, "decode")
    negative = 0
    for row in range(ROWS, 20):
        rest = [j for j in range(row + 1) if j not in windowed(row)]
        terms = x_of(q[0, 0, row], k[0, 0, rest])
        weights = 1 + terms.sum(-1) + (terms**2).sum(-1) / 2
        if weights.sum() < 0:
            negative += 1
            want = by_hand(q[0, 0, row], k[0, 0], v[0, 0], windowed(row), lambda _, r: torch.zeros(len(r)), row)
            torch.testing.assert_close(got[0, 0, row].double(), want, atol=1e-4, rtol=1e-4)
    assert negative > 3


def test_beams_take_their_states_along(model):
    """A beam that goes on with another's history would hear what it never read."""
    method, ids = LinearResidual(keep=None, rows=8), tokens(2, 30)
    with bind(model, method) as binding:
        cache = binding.cache()
        model(ids, past_key_values=cache, use_cache=True)
        cache.reorder_cache(torch.tensor([1, 1]))
        got = model(ids[1:, :1].expand(2, -1), past_key_values=cache, use_cache=True).logits
        alone = binding.cache()
        model(ids[1:], past_key_values=alone, use_cache=True)
        want = model(ids[1:, :1], past_key_values=alone, use_cache=True).logits
        model.generate(ids[:1], max_new_tokens=4, num_beams=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    torch.testing.assert_close(got, want.expand_as(got), atol=1e-5, rtol=1e-4)


def test_a_state_has_one_size_and_is_charged():
    """Bytes that nobody counts would make any state look free."""
    method, size = LinearResidual(keep=None, rows=8, width=4, centre="mean"), 1 + 4 + 4 * 5 // 2
    q, k, v = draw(60)
    memory = fresh(method)
    feed(method, memory, q[:, :, :20], k[:, :, :20], v[:, :, :20], "prefill")
    before = float(memory.held_bytes)
    _, ledger = feed(method, memory, *(x[:, :, 20:21] for x in (q, k, v)), "decode")
    feed(method, memory, q[:, :, 21:], k[:, :, 21:], v[:, :, 21:], "decode")
    numbers = size * (DIM + 1) + 1 + 2 * DIM + 1
    row = 2 * DIM * 4 + 4
    assert float(memory.held_bytes) == before == 4 * (2 * 2 * numbers + 2 * DIM * 4) + 2 * 2 * 8 * row
    assert float(ledger.sums()[0, 1, 4]) == 4 * (2 * 2 * numbers + 2 * DIM * 4) + 2 * 2 * (8 + 1) * row


@pytest.mark.parametrize("args", [{}, {"centre": "mean"}, {"features": "favor", "width": 8}])
def test_a_budget_in_bytes_counts_state_marks_and_weights(args, model):
    """A state on top of what was allowed would be compared with methods that have none as if it were free."""
    size, row = load_map(args.get("features", "taylor"), args.get("width"), 0).features(DIM), 2 * DIM * 4 + 4
    weights = DIM * 8 if "features" in args else 0  # a projection on all dimensions is none
    centre = 2 * DIM + 1 if "centre" in args else 0
    amount = 2 * (4 * (size * (DIM + 1) + 1 + centre + weights) + 10 * row) + row
    method = LinearResidual(keep=None, bytes=amount, **args)
    _, ledger = run_rows(model, method, tokens(1, 40), {}, 17, False)
    told = summary([ledger.sums()])
    assert set(told["over_budget"].values()) == {0.0}
    assert told["decode"]["rows_attended_mean"] == 10 + 1  # and the row that moves into the state
    assert told["bytes_held"] == 2 * (amount - row)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"keep": None, "rows": 4}, "leaves none beside 4 sinks"),
        ({"features": "elu", "centre": "mean"}, "elu cannot expand around a mean"),
        ({"features": "less"}, "less is learned: give trained"),
        ({"features": "elu", "trained": {}}, "elu is not learned"),
        ({"features": "elu", "width": 8}, "its size follows from the head dimension"),
        ({"features": "favor", "basis": {}}, "favor is not projected"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(args, words):
    """A setting that is ignored would be reported as if it had acted."""
    with pytest.raises(ValueError, match=words):
        LinearResidual(**args)


def test_a_model_that_forgets_by_itself_is_refused():
    """A state cannot give back what a sliding window no longer sees, and would add it silently."""
    model = make_model("mistral")
    with pytest.raises(ValueError, match="sliding window of its own"):
        run_rows(model, LinearResidual(keep=None, rows=8), tokens(1, 40), {}, 17, True)


def test_each_map_is_described():
    """A map that the page does not name is used by nobody, and its bytes are not told."""
    page = (ROOT / "docs" / "linear.md").read_text(encoding="utf-8")
    assert [p.stem for p in (ROOT / "models" / "feature_maps").glob("*.py") if f"`{p.stem}`" not in page] == []


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "models" / "feature_maps").glob("*.py")))
def test_a_map_has_as_many_features_as_it_says(name):
    """States would be laid out, charged and told in another size than they have."""
    found = load_map(name, None, 0)
    place = fresh(LinearResidual(keep=None, rows=8)).site
    weights = found.start(2, DIM, generators(0, place)) if found.trained else found.weights(place)
    x = torch.randn(1, 2, 5, DIM)
    for features in (found.keys(x, weights), found.queries(x, weights, None)):
        assert features.value.shape == (1, 2, 5, found.features(DIM))
        assert features.log.shape == (1, 2, 5)
        assert features.value.dtype == torch.float32
