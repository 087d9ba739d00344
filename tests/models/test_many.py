"""Rows through the kernels for many of them, as on a GPU, against rows through masks: here with the eager twins."""

import pytest
import torch
from conftest_models import gap_cases, make_method, make_model, run_rows, tokens
from safetensors.torch import load_file, save_file

from lacuna.kernels.evict_walk.eager import evict_walk
from lacuna.models import attend, lifetime, many, residual, walk
from lacuna.models.ledger import summary

WIRED = ("topk", "loki", "top_theta", "loki_theta", "snapkv", "pyramidkv", "h2o", "tova", "quest", "sparq")
CASES = [case for case in gap_cases() if case.values[0] in WIRED]


@pytest.fixture
def through_kernels(monkeypatch):
    """How often the kernels took a call; they take whatever is plain, on any device."""
    taken = []

    def fits(q_BHTD, memory, call):
        taken.append(call.new > 1 and many.plain(memory, call))
        return taken[-1]

    return lambda: (monkeypatch.setattr(many, "fits", fits), taken)[1]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "args"), CASES)
def test_kernels_and_masks_agree(name, args, padded, basis, through_kernels):
    """Broken: text scored on a GPU is scored by another rule than on a CPU, or the ledger counts other rows."""
    model, ids = make_model(), tokens(2, 40)
    mask = (torch.arange(40) >= torch.tensor([0, 6])[:, None]).long() if padded else None
    method = make_method(name, args)
    want, counted = run_rows(model, method, ids, basis(), 25, True, mask=mask)
    taken = through_kernels()
    got, ledger = run_rows(model, method, ids, basis(), 25, True, mask=mask)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    for phase in ("prefill", "decode"):
        ours, theirs = (summary([book.sums()])[phase] for book in (ledger, counted))
        assert ours == pytest.approx(theirs)
    assert any(taken) != (name == "tova" or args.get("cap", "none") != "none")


@pytest.mark.parametrize(("least", "most"), [(0.5, 3.2), (1.0, 3.4), (1.0, 1.0)])
def test_a_rank_that_is_rounded_across_its_threshold_finds_room(least, most, basis, through_kernels, monkeypatch):
    """Broken: a row that is counted as full keeps one more, which goes beyond its budget: the record would be invalid."""
    model, more, count_above = make_model(num_key_value_heads=1), [], many.count_above
    method = make_method("loki_theta", {"keep": 0.25, "d": 0.25, "least": least, "most": most})

    def full_at_the_most(rank, call, *rest):
        count = count_above(rank, call, *rest)
        bound = ((call.context_BT * 0.25).long() * most).ceil().long().minimum(call.context_BT)[:, None]
        more.append(int((count > bound).sum()))
        return count.minimum(bound)

    through_kernels()
    monkeypatch.setattr(many, "count_above", full_at_the_most)
    _, ledger = run_rows(model, method, tokens(2, 60), basis(heads=1), 25, True)
    assert sum(more) > 0
    assert summary([ledger.sums()])["over_budget"] == {"rows_attended": 0, "rows_held": 0, "bytes": 0}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "args"), [case for case in gap_cases() if case.values[0] in ("adakv", "snapkv")])
def test_rows_that_see_all_that_is_held_need_no_mask(name, args, padded, basis, monkeypatch):
    """Broken: on a GPU, rows after a compressed prompt attend holes or padding."""
    model, ids, method = make_model(), tokens(2, 60), make_method(name, args)
    mask = (torch.arange(60) >= torch.tensor([0, 6])[:, None]).long() if padded else None
    want, counted = run_rows(model, method, ids, basis(), 45, True, mask=mask)
    taken = []
    monkeypatch.setattr(many, "fits_hidden", lambda _q, call: taken.append(call.new > 1) or call.new > 1)
    got, ledger = run_rows(model, method, ids, basis(), 45, True, mask=mask)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    assert taken or (name == "snapkv" and not padded)  # that needs no kernel of ours
    ours, theirs = (summary([book.sums()])["decode"] for book in (ledger, counted))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        *(case for case in gap_cases() if case.values[0] == "streaming_llm"),
        *(("streaming_llm", {"keep": None, "rows": [9, 17], "positions": where}) for where in ("cache", "text")),
    ],
)
@pytest.mark.parametrize("prompt", [1, 25])
def test_windows_need_no_mask(name, args, padded, prompt, basis, monkeypatch):
    """Broken: on a GPU, rows of a window see too few or too many rows, or turned sinks weigh otherwise."""
    model, ids, method = make_model(), tokens(2, 40), make_method(name, args)
    mask = (torch.arange(40) >= torch.tensor([0, 6])[:, None]).long() if padded and prompt > 6 else None
    want, counted = run_rows(model, method, ids, basis(), prompt, True, mask=mask)
    taken, plain = [], lifetime.attend_held
    monkeypatch.setattr(many, "fits_hidden", lambda _q, call: call.new > 1)
    monkeypatch.setattr(lifetime, "attend_held", lambda *given: taken.append(1) or plain(*given))
    got, ledger = run_rows(model, method, ids, basis(), prompt, True, mask=mask)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    grows = args.get("decode") == "grow" or (prompt == 1 and args.get("keep"))
    assert bool(taken) != bool(grows)
    ours, theirs = (summary([book.sums()])["decode"] for book in (ledger, counted))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("prefill", ["dense", "sparse"])
@pytest.mark.parametrize(
    ("name", "args"),
    [case for case in gap_cases() if case.values[0] in ("h2o", "tova") and case.values[1].get("positions") != "cache"],
)
def test_walks_need_no_masks(name, args, padded, prefill, basis, monkeypatch):
    """Broken: on a GPU, H2O or TOVA drops other rows than step by step, or the rows dropped are still attended."""
    model, ids, method = make_model(), tokens(2, 60), make_method(name, args)
    mask = (torch.arange(60) >= torch.tensor([0, 6])[:, None]).long() if padded else None
    want, counted = run_rows(model, method, ids, basis(), 25, True, prefill=prefill, mask=mask)
    taken, plain = [], lifetime.attend_held
    monkeypatch.setattr(many, "fits_hidden", lambda _q, call: call.new > 1)
    monkeypatch.setattr(lifetime, "attend_held", lambda *given: taken.append(1) or plain(*given))
    got, ledger = run_rows(model, method, ids, basis(), 25, True, prefill=prefill, mask=mask)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    assert bool(taken) == (args.get("evict") != "once")
    for phase in ("prefill", "decode"):
        ours, theirs = (summary([book.sums()])[phase] for book in (ledger, counted))
        assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("prompt", [1, 25])
@pytest.mark.parametrize(
    ("name", "args"),
    [case for case in gap_cases() if case.values[0] in ("h2o", "tova") and case.values[1].get("positions") != "cache"],
)
def test_no_head_holds_more_rows_than_the_host_knows_of(name, args, padded, prompt, basis, monkeypatch):
    """Broken: on a GPU, a cache that grows, or texts of different lengths, write beyond the places of a walk."""
    model, ids, method, seen = make_model(), tokens(2, 60), make_method(name, args), []
    mask = (torch.arange(60) >= torch.tensor([0, 6])[:, None]).long() if padded and prompt > 6 else None

    def walked(*given):
        out, number, new, most = evict_walk(*given), given[3], given[0].shape[2], given[-1]
        row, column = torch.arange(new)[:, None], torch.arange(number.shape[2]) - (number.shape[2] - new)
        held = ((out.until_BNS[:, :, None] > row) & (column <= row)).sum(-1)
        seen.append((most, int(held.max())))
        return out

    def seen_kept(keep, most):
        assert most is None or int(keep.sum(-1).max()) <= most

    monkeypatch.setattr(many, "fits_hidden", lambda _q, call: call.new > 1)
    monkeypatch.setattr(walk, "EVICT_WALK", walked)
    kept = attend.rows_of
    monkeypatch.setattr(attend, "rows_of", lambda keep, most=None: seen_kept(keep, most) or kept(keep, most))
    run_rows(model, method, ids, basis(), prompt, True, prefill="sparse", mask=mask)
    run_rows(model, method, ids, basis(), prompt, True, mask=mask)
    assert bool(seen) == (args.get("evict") != "once")
    assert all(held <= most for most, held in seen)
    assert not seen or any(held == most for most, held in seen)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("recent", [0.5, 3])
def test_walks_beside_a_state_need_no_masks(padded, recent, basis, monkeypatch):
    """Broken: on a GPU, other rows go into the state of `linear_residual` than step by step, or sinks leave."""
    model, ids = make_model(), tokens(2, 60)
    method = make_method("linear_residual", {"keep": None, "rows": 9, "sinks": 2, "recent": recent})
    mask = (torch.arange(60) >= torch.tensor([0, 6])[:, None]).long() if padded else None
    want, counted = run_rows(model, method, ids, basis(), 25, True, mask=mask)
    taken, plain = [], residual.walk_at_once
    monkeypatch.setattr(many, "fits_hidden", lambda _q, call: call.new > 1)
    monkeypatch.setattr(residual, "walk_at_once", lambda *given: taken.append(1) or plain(*given))
    got, ledger = run_rows(model, method, ids, basis(), 25, True, mask=mask)
    assert taken
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    ours, theirs = (summary([book.sums()])["decode"] for book in (ledger, counted))
    assert ours == pytest.approx(theirs)


def test_rows_without_a_key_above_the_threshold_keep_the_best(basis, through_kernels):
    """Broken: a row that no score exceeds attends nothing on a GPU, and its largest score on a CPU."""
    model, ids, files = make_model(), tokens(1, 40), basis()
    method = make_method("top_theta", {"rows": 2, "placement": "post", "heads": "query"})
    raised = torch.full((4, 3), 0.97)
    tensors = load_file(files["thresholds"])
    save_file(tensors | {name: raised.clone() for name in tensors if name.endswith("post")}, files["thresholds"])
    want, _ = run_rows(model, method, ids, files, 25, True)
    through_kernels()
    got, _ = run_rows(model, method, ids, files, 25, True)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
