"""The operations on many query rows against definitions written row by row, and their twins against each other.

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, D head dim, N sets of rows.
"""

from dataclasses import replace

import pytest
import torch

from lacuna.kernels.many_rows import RowsCase, Tiles
from lacuna.kernels.op import load_op
from lacuna.kernels.verify import judge, poisoned_memory, verify

OPS = ("chosen_prefill", "column_sums", "kth_score", "rank_counts", "threshold_prefill", "window_votes")
CASES = [(name, case) for name in OPS for case in load_op(name).cases if case.purpose == "test"]
SMALL = Tiles(32, 16, 4, 2)


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda part: getattr(part, "name", part))
def test_twins_agree(name, case, device):
    """Broken: a fused twin errs more than twice as much as the eager one, or leaves output unwritten."""
    verdict = verify(load_op(name), case, device)
    assert verdict.passed, verdict


@pytest.mark.parametrize(("name", "case"), CASES[1::2], ids=lambda part: getattr(part, "name", part))
def test_tiles_do_not_change_the_result(name, case, device):
    """Broken: rows at the borders of tiles are lost or doubled."""
    op, case = load_op(name), replace(case, dtype="float32", head_dim=16, low_dims=8 if "low" in case.name else 16)
    verdict = judge(op, case, op.make(case, device, 5), SMALL)
    assert verdict.passed, verdict


@pytest.mark.parametrize("case", [case for name, case in CASES if name == "kth_score"], ids=lambda case: case.name)
def test_borders_of_rows_that_no_block_holds_are_the_same(case, device, monkeypatch):
    """Broken: in texts of more than 32768 tokens other rows are kept."""
    monkeypatch.setattr("lacuna.kernels.kth_score.stored.fused.MOST_ROWS", 0)
    monkeypatch.setattr("lacuna.kernels.kth_score.stored.fused.PART", 32)
    verdict = verify(load_op("kth_score"), case, device)
    assert verdict.passed, verdict


@pytest.mark.parametrize("case", [case for name, case in CASES if name == "kth_score"], ids=lambda case: case.name)
def test_borders_found_some_rows_at_a_time_are_the_same(case, device, monkeypatch):
    """Broken: where all scores are too many to be held at one time, the rows of later pieces are ranked wrongly."""
    monkeypatch.setattr("lacuna.kernels.kth_score.stored.fused.SCORES_AT_ONCE", 11 * case.batch * case.sets * case.rows)
    verdict = verify(load_op("kth_score"), case, device)
    assert verdict.passed, verdict


@pytest.mark.parametrize("most", [32768, 0], ids=["held", "passes"])
@pytest.mark.parametrize("case", [case for name, case in CASES if name == "kth_score"], ids=lambda case: case.name)
def test_borders_that_are_not_asked_for_cost_the_others_nothing(case, most, device, monkeypatch):
    """Broken: rows that stray from their thresholds beside rows that do not get a border of ranks never written."""
    monkeypatch.setattr("lacuna.kernels.kth_score.stored.fused.MOST_ROWS", most)
    monkeypatch.setattr("lacuna.kernels.kth_score.stored.fused.PART", 32)
    op = load_op("kth_score")
    inputs, small = op.make(case, device, 5), Tiles(32, 16, 4, 2)
    inputs["k_BNT"][:, :, 9:] = -1
    inputs["k_BNT"][:, :, 20] = 3
    inputs["k_BNT"][:, :, ::5] = -1
    with poisoned_memory():
        found = op.fused(**inputs, plan=small)
    for one, other, ended in zip(found, op.eager(**inputs), (torch.inf, -torch.inf), strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), atol=2e-2, rtol=0)
        assert bool((one[inputs["k_BNT"] < 0] == ended).all())


LOW_RANK = [(head_dim, dims, dtype) for head_dim, dims in ((96, 24), (128, 32)) for dtype in ("bfloat16", "float32")]


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize("reduce", ["max", "none"])
@pytest.mark.parametrize(("head_dim", "dims", "dtype"), LOW_RANK)
def test_counts_are_those_of_what_is_kept(head_dim, dims, dtype, reduce, twin, device):
    """Broken: where rows stray from their budget is looked for by another rule than rows are kept by."""
    count, kept = counted_and_kept(ranking(head_dim, dims, dtype, reduce, device), twin)
    assert int(count.max()) > 30
    assert torch.equal(count, kept)


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize(("head_dim", "dims", "dtype"), LOW_RANK)
def test_a_rank_at_its_threshold_is_one_row_more_at_the_most(head_dim, dims, dtype, twin, device):
    """Broken: ranks are rounded so differently that a row with room for one more is kept with two, beyond its budget."""
    inputs = ranking(head_dim, dims, dtype, "max", device)
    q, k = inputs["rank_q_BHTR"].float(), inputs["rank_k_BGSR"].float()
    rank = (q.unflatten(1, (2, -1)) @ k[:, :, None].mT).amax(2) * inputs["scale"]
    at = torch.arange(rank.shape[2], device=device)
    inputs["threshold_BNT"] = rank[:, :, at, at * 7 % (at + 1)].contiguous()
    count, kept = counted_and_kept(inputs, twin)
    assert int((count - kept).abs().max()) <= 1


def ranking(head_dim, dims, dtype, reduce, device):
    case = RowsCase("low", 1, 6, 2, 90, head_dim=head_dim, low_dims=dims, kept=40, dtype=dtype, reduce=reduce)
    return load_op("threshold_prefill").make(case, device, 3) | {"shift_BHT": None}


def counted_and_kept(inputs, twin):
    names = ("rank_q_BHTR", "rank_k_BGSR", "threshold_BNT", "first_B", "scale", "reduce")
    count = getattr(load_op("rank_counts"), twin)(**{name: inputs[name] for name in names})
    return count, getattr(load_op("threshold_prefill"), twin)(**inputs).count_BNT


def scores_of(q, k, first, scale, b, h, t):
    """(rows, scores) that query t of head h sees, float64."""
    row = k.shape[2] - q.shape[2] + t
    seen = torch.arange(int(first[b]), max(int(first[b]), row + 1))
    return seen, (k[b, h * k.shape[1] // q.shape[1], seen].double() @ q[b, h, t].double()) * scale


def inputs_of(name, **change):
    case = RowsCase("small", 2, 4, 2, 23, head_dim=8, low_dims=8, kept=5, queries=17, dtype="float64", layout="padded")
    case = replace(load_op(name).cases[0], **{f: getattr(case, f) for f in RowsCase.__dataclass_fields__})
    return load_op(name).make(replace(case, **change), torch.device("cpu"), 2)


def test_column_sums_are_those_of_causal_attention():
    """Broken: H2O's marks see the future, or padding, or miss heads of the group."""
    inputs = inputs_of("column_sums")
    q, k, first = inputs["q_BHTD"], inputs["k_BGSD"], inputs["first_B"]
    expected = torch.zeros(k.shape[:3], dtype=torch.float64)
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen, score = scores_of(q, k, first, inputs["scale"], b, h, t)
        if len(seen):
            expected[b, h // 2, seen] += score.softmax(0)
    torch.testing.assert_close(load_op("column_sums").eager(**inputs), expected)


def test_row_sums_of_both_twins_are_those_of_causal_attention(device):
    """Broken: weights after the softmax are compared with thresholds by a wrong sum."""
    from lacuna.kernels.column_sums import eager, fused

    inputs = inputs_of("column_sums", dtype="float32")
    q, k, first, scale = inputs.values()
    expected = torch.full(q.shape[:3], -torch.inf, dtype=torch.float64)
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen, score = scores_of(q, k, first, scale, b, h, t)
        expected[b, h, t] = score.logsumexp(0) if len(seen) else -torch.inf
    for twin in (eager, fused):
        found = twin.row_sums(q.to(device), k.to(device), first.to(device), scale).double().cpu()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_any_length_are_searched_by_a_power_of_two_of_warps(monkeypatch):
    """Broken: rows of 25000 keys ask for 12 warps, which no GPU gives, though 32768 keys are fine."""
    from lacuna.kernels.kth_score.stored import fused

    warps = []
    launch = {(5, 2): lambda *_, num_warps, **__: warps.append(num_warps)}
    monkeypatch.setattr(fused, "row_border_kernel", launch)
    for width in (7, 1000, 9000, 12300, 25000, 32768):
        fused._search(None, torch.zeros(1, 2, 9), None, None, 0, 5, width)
    assert warps == [4, 4, 8, 8, 16, 16]


@pytest.mark.parametrize("reduce", ["max", "none"])
def test_the_border_is_that_of_sorted_scores(reduce):
    """Broken: a threshold keeps one row too many or too few."""
    inputs = inputs_of("kth_score", reduce=reduce)
    q, k, wanted, first = (inputs[name] for name in ("q_BHTR", "k_BGSR", "k_BNT", "first_B"))
    kth, next_ = load_op("kth_score").eager(**inputs)
    for b, n, t in torch.cartesian_prod(*(torch.arange(size) for size in kth.shape)).tolist():
        heads = [n] if reduce == "none" else [2 * n, 2 * n + 1]
        ranks = torch.stack([scores_of(q, k, first, inputs["scale"], b, h, t)[1] for h in heads]).amax(0)
        best = sorted(ranks.tolist(), reverse=True)
        many = min(int(wanted[b, n, t]), len(best))
        assert float(kth[b, n, t]) == pytest.approx(best[many - 1] if many else float("inf"))
        assert float(next_[b, n, t]) == pytest.approx(best[many] if many < len(best) else -float("inf"))


@pytest.mark.parametrize("most", [32768, 0], ids=["held", "passes"])
def test_borders_of_ranks_are_those_of_sorted_ranks(most, device, monkeypatch):
    """Broken: rows that are taken in any case, or rows that are hidden, move the border of the others."""
    from lacuna.kernels.kth_score.eager import border
    from lacuna.kernels.kth_score.stored.fused import border_of_ranks

    monkeypatch.setattr("lacuna.kernels.kth_score.stored.fused.MOST_ROWS", most)
    monkeypatch.setattr("lacuna.kernels.kth_score.stored.fused.PART", 32)
    generator = torch.Generator().manual_seed(5)
    rank = torch.randn(2, 3, 7, 150, generator=generator)
    rank[..., 11:40] = torch.inf
    rank[..., 90:] = -torch.inf
    rank[0, 1] = rank[0, 1].round()  # equal ones
    rank[1, 2] = -torch.inf
    budget = torch.randint(0, 160, (2, 3, 7), generator=generator)
    with poisoned_memory():
        found = border_of_ranks(rank.to(device), budget.to(device))
    for mine, theirs in zip(found, border(rank.sort(-1, descending=True).values, budget), strict=True):
        assert torch.equal(mine.cpu(), theirs)


@pytest.mark.parametrize("most", [32768, 0], ids=["held", "passes"])
def test_ties_at_the_border_end_the_search(most, device, monkeypatch):
    """Broken: equal scores, such as those of a head that only pads, keep the search from ending."""
    monkeypatch.setattr("lacuna.kernels.kth_score.stored.fused.MOST_ROWS", most)
    monkeypatch.setattr("lacuna.kernels.kth_score.stored.fused.PART", 32)
    q, k = torch.ones(1, 1, 40, 16, device=device), torch.ones(1, 1, 40, 16, device=device)
    k[:, :, ::4] = 2.0
    budget = torch.tensor([[[row % 3 * 6 for row in range(40)]]], dtype=torch.int32, device=device)
    arguments = (q, k, budget, torch.zeros(1, dtype=torch.int32, device=device), 1.0, "none")
    with poisoned_memory():
        found = load_op("kth_score").fused(*arguments)
    for one, other in zip(found, load_op("kth_score").eager(*arguments), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("reduce", ["max", "none"])
def test_exactly_the_keys_above_the_threshold_are_attended(reduce):
    """Broken: a key at or below the threshold is attended, one above is not, or the sums are of other keys."""
    inputs = inputs_of("threshold_prefill", reduce=reduce)
    q, k, v, first, scale = (inputs[name] for name in ("q_BHTD", "k_BGSD", "v_BGSD", "first_B", "scale"))
    kept = load_op("threshold_prefill").eager(**inputs)
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen, score = scores_of(q, k, first, scale, b, h, t)
        sharing = [h] if reduce == "none" else [h // 2 * 2, h // 2 * 2 + 1]
        shift = 0 if inputs["shift_BHT"] is None else inputs["shift_BHT"][b, h, t]
        rank = torch.stack([scores_of(q, k, first, scale, b, other, t)[1] for other in sharing]).amax(0) - shift
        n = h if reduce == "none" else h // 2
        above = rank > inputs["threshold_BNT"][b, n, t]
        assert int(kept.count_BNT[b, n, t]) == int(above.sum())
        expected = score[above].softmax(0) @ v[b, h // 2, seen[above]]
        torch.testing.assert_close(kept.out_BHTD[b, h, t], expected if above.any() else torch.zeros_like(expected))
        if len(seen):
            torch.testing.assert_close(kept.top_BHT[b, h, t], score.max())
            torch.testing.assert_close(kept.total_BHT[b, h, t], (score - score.max()).exp().sum())
            torch.testing.assert_close(kept.kept_BHT[b, h, t], (score - score.max()).exp()[above].sum())


def test_sums_may_be_of_ranks():
    """Broken: what lacks of the weight is told by exact scores, which lie apart from low-rank ones, or of other keys."""
    inputs = inputs_of("threshold_prefill", low_dims=4)
    assert inputs["weigh"] == "ranks"
    kept = load_op("threshold_prefill").eager(**inputs)
    q, k, first, scale = (inputs[name] for name in ("rank_q_BHTR", "rank_k_BGSR", "first_B", "scale"))
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen, rank = scores_of(q, k, first, scale, b, h, t)
        both = torch.stack([scores_of(q, k, first, scale, b, other, t)[1] for other in (h // 2 * 2, h // 2 * 2 + 1)])
        above = both.amax(0) > inputs["threshold_BNT"][b, h // 2, t]
        if len(seen):
            torch.testing.assert_close(kept.top_BHT[b, h, t], rank.max())
            torch.testing.assert_close(kept.total_BHT[b, h, t], (rank - rank.max()).exp().sum())
            torch.testing.assert_close(kept.kept_BHT[b, h, t], (rank - rank.max()).exp()[above].sum())


def test_what_a_group_reads_is_the_union_of_its_heads():
    """Broken: the ledger counts rows that several heads keep more than once, or only those that all keep."""
    inputs = inputs_of("threshold_prefill", reduce="none") | {"shift_BHT": None}
    kept = load_op("threshold_prefill").eager(**inputs)
    q, k, first, scale = (inputs[name] for name in ("q_BHTD", "k_BGSD", "first_B", "scale"))
    for b, g, t in torch.cartesian_prod(*(torch.arange(n) for n in kept.read_BGT.shape)).tolist():
        union = set()
        for h in (2 * g, 2 * g + 1):
            seen, score = scores_of(q, k, first, scale, b, h, t)
            union |= set(seen[score > inputs["threshold_BNT"][b, h, t]].tolist())
        assert int(kept.read_BGT[b, g, t]) == len(union)


@pytest.mark.parametrize(("group", "kernel", "pooling"), [("mean", 5, "max"), ("sum", 3, "avg"), ("max", 1, "max")])
def test_votes_are_pooled_sums_of_the_window(group, kernel, pooling):
    """Broken: a row votes that is none of the window, votes for the window count, or heads are joined after pooling."""
    inputs = inputs_of("window_votes", queries=6) | {"group": group, "kernel": kernel, "pooling": pooling}
    q, k, first = inputs["q_BHWD"], inputs["k_BGSD"], inputs["first_B"]
    found, rows = load_op("window_votes").eager(**inputs), k.shape[2]
    for b, width in enumerate(inputs["width_B"].tolist()):
        votes = torch.zeros(4, rows, dtype=torch.float64)
        for h in range(4):
            for t in range(6 - (width or 6), 6):
                seen, score = scores_of(q, k, first, inputs["scale"], b, h, t)
                votes[h, seen] += score.softmax(0)
        votes[:, rows - width :] = 0
        for g in range(2):
            pair = votes[2 * g : 2 * g + 2]
            joined = {"mean": pair.mean(0), "sum": pair.sum(0), "max": pair.max(0).values}[group]
            half = kernel // 2
            padded = torch.cat([torch.zeros(half), joined, torch.zeros(half)])
            around = padded.unfold(0, kernel, 1)
            expected = around.max(-1).values if pooling == "max" else around.mean(-1)
            expected[rows - width :] = 0
            torch.testing.assert_close(found[b, g], expected)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [("window_votes", {"kernel": 4}, "odd kernel"), ("window_votes", {"group": "min"}, "group among"),
     ("window_votes", {"pooling": "sum"}, "pooling"), ("kth_score", {"reduce": "sum"}, "reduce among")],
)  # fmt: skip
def test_words_that_are_not_known_are_refused(name, change, message):
    """Broken: a typing error in an argument gives another result instead of a message."""
    for twin in (load_op(name).eager, load_op(name).fused):
        with pytest.raises(ValueError, match=message):
            twin(**inputs_of(name) | change)
