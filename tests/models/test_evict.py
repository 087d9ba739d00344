"""Eviction and pages against the definitions of evict_reference.py: which rows are kept, and what is attended."""

import itertools

import pytest
import torch
from conftest_models import DIM, make_method
from evict_reference import ONCE, ROW, SMALL, Accounts, attended, draw, feed, fresh, held, pooled, prompt, votes


@pytest.mark.parametrize(("pooling", "kernel", "join"), [("max", 5, "mean"), ("avg", 3, "max"), ("max", 1, "sum")])
def test_snapkv_keeps_the_window_and_the_best_votes(pooling, kernel, join):
    """The chosen rows must be the paper's; pooled votes tie by nature, so votes are compared, not indices."""
    q, k, v = draw(20)
    method = make_method("snapkv", {"rows": 9, "window": 4, "kernel": kernel, "pooling": pooling, "group": join})
    kept = held(prompt(method, q, k, v))
    for b in range(2):
        for g in range(2):
            value = pooled(votes(q, k, b, g, 4, join), kernel, pooling)
            chosen = sorted(value[j] for j in kept[b][g] if j < 16)
            assert {16, 17, 18, 19} <= kept[b][g]
            assert chosen == pytest.approx(sorted(value)[-5:], abs=1e-6)


def test_ties_go_to_the_oldest_row():
    """Equal keys give equal votes: the choice must still be a rule, or results would differ between devices."""
    q, k, v = draw(20)
    k = torch.ones_like(k)
    kept = held(prompt(make_method("snapkv", {"rows": 9, "window": 4, "pooling": "max"}), q, k, v))
    assert kept == [[{0, 1, 2, 3, 4, 16, 17, 18, 19}] * 2] * 2


def test_snapkv_per_query_head():
    """The released layout chooses for each query head; each must get its own best votes."""
    q, k, v = draw(20)
    memory = prompt(make_method("snapkv", {"rows": 9, "window": 4, "kernel": 3, "heads": "query"}), q, k, v)
    for b in range(2):
        for h in range(4):
            value = pooled(votes(q[:, h : h + 1], k[:, h // 2 : h // 2 + 1], b, 0, 4), 3, "max")
            assert sorted(value[j] for j in held(memory)[b][h] if j < 16) == pytest.approx(sorted(value)[-5:], abs=1e-6)


@pytest.mark.parametrize("name", [*ONCE, "h2o"])
def test_decoded_rows_attend_what_was_kept(name):
    """Keys and values that came apart when rows moved would give plausible nonsense."""
    q, k, v = draw(24)
    method = make_method(name, {**SMALL[name], **({"evict": "once"} if name == "h2o" else {})})
    memory = prompt(method, q[:, :, :20], k[:, :, :20], v[:, :, :20])
    before = held(memory)
    for i in range(20, 24):
        row = slice(i, i + 1)
        out, _ = feed(method, memory, q[:, :, row], k[:, :, row], v[:, :, row], "decode")
        for b in range(2):
            for h in range(4):
                rows = before[b][h // 2] | set(range(20, i + 1))
                want = attended(q[b, h, i], k, v, b, h, rows)
                torch.testing.assert_close(out[b, h, 0].double(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("name", "recent"), [("h2o", 3), ("tova", 1)])
def test_rows_dropped_step_by_step(name, recent, at_once):
    """H2O adds attention up and TOVA looks at the last row only: after every row the set held must be the paper's."""
    q, k, v = draw(30, seed=4)
    method = make_method(name, {"rows": 8, "recent": 3} if name == "h2o" else {"rows": 8})
    memory = prompt(method, q[:, :, :14], k[:, :, :14], v[:, :, :14])
    want = [[Accounts(q, k, b, g, 8, recent, name == "h2o") for g in range(2)] for b in range(2)]
    for account in itertools.chain(*want):
        account.prefill(14)
    assert held(memory) == [[set(a.held) for a in text] for text in want]
    steps = [range(14, 30)] if at_once else [range(i, i + 1) for i in range(14, 30)]
    for step in steps:
        out, _ = feed(method, memory, *(x[:, :, step.start : step.stop] for x in (q, k, v)), "decode")
        for place, i in enumerate(step):
            for account in itertools.chain(*want):
                account.step(i)
            for b in range(2):
                for h in range(4):
                    right = attended(q[b, h, i], k, v, b, h, want[b][h // 2].held)
                    torch.testing.assert_close(out[b, h, place].double(), right, atol=1e-5, rtol=1e-5)
        assert held(memory) == [[set(a.held) for a in text] for text in want]


def test_h2o_is_causal():
    """An early row that saw the future (masking only the last corner) would favour late rows."""
    q, k, v = draw(20)
    method = make_method("h2o", {"rows": 40})
    marks = prompt(method, q, k, v).aux["mark"].view[..., 0]
    assert marks.sum(-1) == pytest.approx(torch.full((2, 2), 2 * 20.0))  # two query heads of 20 rows
    for cut in (1, 7):
        early = prompt(method, q[:, :, :-cut], k[:, :, :-cut], v[:, :, :-cut]).aux["mark"].view[..., 0]
        assert (marks[..., :-cut] >= early - 1e-6).all()  # later rows only ever add


def test_h2o_keeps_counting_in_decode():
    """The one-shot variant that goes by this name never updates its accounts; a row that becomes heavy must survive."""
    q, k, v = draw(12, batch=1)
    method = make_method("h2o", {"rows": 6, "recent": 2})
    memory = prompt(method, q[:, :, :8], k[:, :, :8], v[:, :, :8])
    target = min(held(memory)[0][0])
    looks = 20 * torch.nn.functional.normalize(k[:, :, target : target + 1].repeat_interleave(2, 1), dim=-1)
    for i in range(8, 12):
        feed(method, memory, looks, k[:, :, i : i + 1], v[:, :, i : i + 1], "decode")
    assert target in held(memory)[0][0]
    assert float(memory.aux["mark"].view[0, 0, 0, 0]) > 4


@pytest.mark.parametrize("layers", [1, 2, 5, 32, 80])
def test_pyramidkv_never_overspends(layers):
    """The released step is a whole number and spends up to 27% more than the budget; ours spends it, to the row."""
    method = make_method("pyramidkv", {"rows": 64})
    for k in (9, 10, 64, 128, 1000):
        for length in (k, k + 1, 2 * k, 7500):
            at = [method._exact(torch.tensor([k]), torch.tensor([length]), layer, layers) for layer in range(layers)]
            rows = [int(x) for x in at]
            assert sum(rows) == layers * k
            assert min(rows) >= method.window
            assert max(rows) <= length
            assert all(a + 1 >= b for a, b in itertools.pairwise(rows))  # falling, up to rounding


@pytest.mark.parametrize(
    ("layers", "k", "mean"), [(32, 64, 71.5), (32, 128, 133.5), (32, 2048, 2048.5), (80, 64, 78.5), (80, 128, 163)]
)
def test_pyramidkv_released_rule(layers, k, mean):
    """The variant that reproduces published numbers must overspend as they did."""
    method = make_method("pyramidkv", {"rows": k, "budget_rule": "released"})
    rows = [int(method._released(torch.tensor([k]), torch.tensor([7500]), x, layers)) for x in range(layers)]
    assert sum(rows) / layers == mean


def test_pyramidkv_released_cases():
    """Short prompts are kept whole, middling ones cut like SnapKV's, and where the lowest layer is full the line turns."""
    method = make_method("pyramidkv", {"rows": 40, "budget_rule": "released"})

    def rows(length, layer=0):
        k = torch.tensor([min(40, length)])
        return int(method._released(k, torch.tensor([length]), layer, 9))

    assert [rows(30, x) for x in (0, 8)] == [30, 30]
    assert [rows(63, x) for x in (0, 8)] == [40, 40]
    assert [rows(64, x) for x in (0, 8)] == [64, 16]  # 56 past rows, 8 less, step 6: everything, then little
    assert rows(400) == 8 + 63


@pytest.mark.parametrize("floor", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_adakv_spends_the_layers_budget_exactly(floor, seed):
    """Rounding each head's share by itself loses rows (124 of 128), and so compares at unequal budgets."""
    q, k, v = draw(40, seed=seed)
    k[:, 0] *= 3  # one head looks at few rows
    method = make_method("adakv", {"rows": 13, "window": 4, "kernel": 3, "floor": floor})
    memory = prompt(method, q, k, v)
    for b, heads in enumerate(held(memory)):
        assert sum(map(len, heads)) == 2 * 13
        value = [pooled(votes(q, k, b, g, 4), 3, "max") for g in range(2)]
        best = sorted(itertools.chain(*value))[-2 * 9 :]
        for g, rows in enumerate(heads):
            won = sum(x >= best[0] for x in value[g])
            assert abs(len(rows) - 4 - (floor * 9 + (1 - floor) * won)) <= 1 + (floor < 1) * 2  # ties, and rounding
            assert sorted(value[g][j] for j in rows if j < 36) == pytest.approx(sorted(value[g])[40 - len(rows) :])


def test_ragged_heads_are_charged_what_they_hold():
    """The eager cache is as wide as its longest head; its holes are neither held, nor read, nor attended."""
    q, k, v = draw(41)
    k[:, 0] *= 3
    method = make_method("adakv", {"rows": 13, "window": 4, "floor": 0.0})
    memory = prompt(method, *(x[:, :, :40] for x in (q, k, v)))
    assert memory.keys.view.shape[2] > 13
    assert float(memory.held_bytes) == 2 * 2 * 13 * ROW
    hole = memory.columns < 0
    memory.keys.view[hole], memory.values.view[hole] = 1e4, 1e4
    out, ledger = feed(method, memory, *(x[:, :, 40:] for x in (q, k, v)), "decode")
    assert out.abs().max() < 10
    assert float(ledger.sums()[0, 1, 2]) == 2 * 2 * 14
    assert float(ledger.sums()[0, 1, 3]) == 2 * 2 * 14


def test_l2norm_keeps_small_keys_and_skips_layers():
    """Large norms mean little attention; the first layers are the exception, which the paper leaves whole."""
    q, k, v = draw(20)
    method = make_method("l2norm", {"rows": 6, "skip": 1})
    kept = held(prompt(method, q, k, v, layer=1, layers=2))
    for b in range(2):
        for g in range(2):
            norms = k[b, g].double().norm(dim=-1).tolist()
            assert kept[b][g] == set(sorted(range(20), key=norms.__getitem__)[:6])
    assert prompt(method, q, k, v, layer=0, layers=2).columns is None


def test_keydiff_keeps_keys_unlike_the_mean():
    """The anchor is the mean of normalised keys, over the text and nothing else."""
    q, k, v = draw(20)
    kept = held(prompt(make_method("keydiff", {"rows": 6}), q, k, v))
    for b in range(2):
        for g in range(2):
            units = [x / x.norm() for x in k[b, g].double()]
            anchor = sum(units) / 20
            like = [float(u @ anchor / anchor.norm()) for u in units]
            assert kept[b][g] == set(sorted(range(20), key=like.__getitem__)[:6])


@pytest.mark.parametrize("among", ["rows", "pages"])
@pytest.mark.parametrize("alike", ["nothing", "boxes"])
@pytest.mark.parametrize("heads", ["kv", "query"])
def test_quest_attends_the_pages_of_the_largest_bounds(heads, alike, among):
    """Bounds are of whole pages, the first of equals wins; the row's own page is always attended; never more than k rows."""
    q, k, v = draw(23)
    if alike == "boxes":
        k[:, :, :20] = k[:, :, :4].repeat(1, 1, 5, 1)
    method = make_method("quest", {"rows": 11, "page": 4, "skip": 0, "heads": heads})
    memory = fresh(method)
    feed(method, memory, *(x[:, :, :22] for x in (q, k, v)), "prefill")
    out, ledger = feed(method, memory, *(x[:, :, 22:] for x in (q, k, v)), "decode", causal=among == "pages")
    total = 0
    for b in range(2):
        each = []
        for h in range(4):
            boxes = [k[b, h // 2, p * 4 : p * 4 + 4].double() for p in range(5)]
            query = q[b, h, 22].double()
            each.append([float(torch.maximum(query * x.amax(0), query * x.amin(0)).sum()) for x in boxes])
            assert all(bound >= float((x @ query).max()) - 1e-9 for bound, x in zip(each[-1], boxes, strict=True))
        if heads == "kv":
            each = [[max(x) for x in zip(each[h // 2 * 2], each[h // 2 * 2 + 1], strict=True)] for h in range(4)]
        best = [sorted(range(5), key=lambda p, x=x: -x[p])[:2] for x in each]  # 3 rows of its own, 8 of whole pages
        rows = [{20, 21, 22} | {4 * p + i for p in pages for i in range(4)} for pages in best]
        total += sum(len(rows[2 * g] | rows[2 * g + 1]) for g in range(2))
        for h in range(4):
            want = attended(q[b, h, 22], k, v, b, h, rows[h])
            torch.testing.assert_close(out[b, h, 0].double(), want, atol=1e-5, rtol=1e-5)
    assert float(ledger.sums()[0, 1, 2]) == total
    assert float(ledger.sums()[0, 1, 4]) == total * ROW + 2 * 2 * 5 * 2 * DIM * 4  # five boxes of each head are read
