"""Two archives compared."""

import re

import pytest

from lacuna.analysis.diff import compare
from lacuna.results.cell import Spec
from lacuna.results.frame import to_frame
from lacuna.results.record import Record


def changed(record, **changes):
    return Record(**{**vars(record), **changes})


def slower(record, factor):
    samples = [{**s, "ms": s["ms"] * factor} for s in record.samples]
    return changed(record, samples=samples)


def test_the_same_is_not_worse(demo):
    """Broken: CI fails on an archive compared with itself."""
    found = compare(demo, demo)
    assert not found.worse
    assert "50 cells in both: 0 worse, 0 better, 50 the same" in found.text


def test_a_loss_in_every_window_is_found(make):
    """Broken: a small but sure loss of perplexity passes."""
    a = make.perplexity("full", {}, 1.0)
    b = changed(a, samples=[{**s, "nll_nats": s["nll_nats"] * 1.005} for s in a.samples])
    assert compare(to_frame([a]), to_frame([b])).worse
    back = compare(to_frame([b]), to_frame([a]))
    assert not back.worse
    assert back.text.startswith("better")


def test_rounding_is_not_a_loss(make):
    """Broken: sums in another order, on another machine, fail CI."""
    a = make.perplexity("full", {}, 1.0)
    b = changed(a, samples=[{**s, "nll_nats": s["nll_nats"] * (1 + 1e-6)} for s in a.samples])
    assert not compare(to_frame([a]), to_frame([b])).worse


def test_direction_is_the_tasks_own(make):
    """Broken: fewer needles found count as better."""
    a = make.needle("full", {}, 1.0, 256)
    b = changed(a, samples=[{**s, "score": s["score"] if s["repeat"] else 0} for s in a.samples])
    assert compare(to_frame([a]), to_frame([b])).worse
    assert not compare(to_frame([b]), to_frame([a])).worse


@pytest.mark.parametrize(("factor", "worse"), [(1.04, False), (1.08, True), (0.9, False)])
def test_times_have_a_band(make, factor, worse):
    """Broken: noise fails CI, or a slow-down beyond the band passes."""
    a = make.decode_time("full", {}, 1.0)
    assert compare(to_frame([a]), to_frame([slower(a, factor)])).worse is worse


def test_the_band_can_be_set(make):
    """Broken: a noisy machine cannot be allowed its noise."""
    a = make.decode_time("full", {}, 1.0)
    assert not compare(to_frame([a]), to_frame([slower(a, 1.08)]), band=0.1).worse


def test_a_cell_that_fails_now_is_worse(make):
    """Broken: a cell that runs out of memory since yesterday passes."""
    a = make.perplexity("full", {}, 1.0)
    found = compare(to_frame([a]), to_frame([make.failed(a.cell)]))
    assert found.worse
    assert "ok -> oom out of memory" in found.text


def test_cells_of_one_side_are_listed(make, demo):
    """Broken: cells that were not run again are taken for the same."""
    few = to_frame(make.sweep(lengths=(256,)))
    found = compare(demo, few)
    assert found.text.count("only A") == 20
    assert not found.worse


def test_keys_may_differ(make):
    """Broken: a new version of a method has no cell in common with the old one, and nothing is compared."""
    a = make.perplexity("topk", {"k": 0.5}, 0.5)
    method = Spec("topk", version=2, args={"k": 0.5})
    b = changed(
        a,
        cell=type(a.cell)(**{**vars(make.cell("topk", {"k": 0.5}, "perplexity", {"text": "prose"})), "method": method}),
    )
    assert a.key != b.key
    assert "1 cells in both" in compare(to_frame([a]), to_frame([b])).text


def test_nothing_in_common_is_one_sentence(make, demo):
    """Broken: two unrelated archives are `not worse`."""
    with pytest.raises(ValueError, match="no cell in common"):
        compare(demo, to_frame(make.sweep(ranks=7)))
    with pytest.raises(ValueError, match="the second table has no records"):
        compare(demo, to_frame([]))


def test_lines_are_those_that_reframe_reads(make):
    """Broken: a ReFrame test that runs `lacuna diff` finds no performance, or B's number as the reference."""
    a = make.decode_time("topk", {"k": 0.5}, 0.5)
    text = compare(to_frame([a]), to_frame([slower(a, 2.0)])).text
    (line,) = re.findall(r"^P: (\S+): (\S+) (\S+) \(r:(\S+), l:(\S+), u:(\S+)\)$", text, flags=re.MULTILINE)
    assert line[0].endswith(".decode_ms_median")
    assert float(line[1]) == pytest.approx(2 * float(line[3]), rel=1e-4)
    assert float(line[3]) == pytest.approx(a.metrics["decode_ms_median"], rel=1e-4)
    assert line[2] == "ms"
    assert line[4:] == ("None", "0.05")


def test_every_cell_has_a_line_of_its_own(demo):
    """Broken: two cells share a name, and ReFrame keeps one of them."""
    names = re.findall(r"^P: (\S+):", compare(demo, demo).text, flags=re.MULTILINE)
    assert len(set(names)) == 50


def test_old_and_new_words_of_a_budget_meet(make):
    """Broken: no method of an archive from before `keep` and `rows` is compared with one from after."""
    old = to_frame([make.perplexity("topk", {"k": 0.5}, 0.5), make.perplexity("topk", {"k": 64}, 0.5)])
    new = to_frame([make.perplexity("topk", {"keep": 0.5}, 0.5), make.perplexity("topk", {"rows": 64}, 0.5)])
    named = (
        old.assign(method_label=["topk k=0.5", "topk k=64"]),
        new.assign(method_label=["topk keep=0.5", "topk rows=64"]),
    )
    assert "2 cells in both" in compare(*named).text
