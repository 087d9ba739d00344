"""The words of a budget in a sweep file, and the rules of plug-ins, on the suite's own methods."""

import subprocess
import sys
from pathlib import Path

import pytest

from lacuna.jobs import show
from lacuna.jobs.sweep import SweepError, read
from lacuna.results import plugins
from lacuna.results.fields import Budget, mark

HEAD = "model: pocket\ntask: perplexity\nmethod:\n  "
WORDS = ("keep", "rows", "bytes")
BUDGETED = [n for n in plugins.names("methods") if any(mark(f.kind, Budget) for f in plugins.describe("methods", n).fields)]  # fmt: skip


def sweep(folder, text):
    path = Path(folder) / "sweep.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    return read(path, Path(folder) / "store").cells


def told(folder, text):
    with pytest.raises(SweepError) as caught:
        sweep(folder, text)
    return [error.split("sweep.yaml:")[1] for error in caught.value.errors]


def budget(cell):
    return {word: cell.method.args[word] for word in WORDS if cell.method.args[word] is not None}


def test_every_budget_has_the_same_three_words():
    """A method whose budget had a word of its own could not stand in one sweep with the others."""
    assert len(BUDGETED) >= 14
    for name in BUDGETED:
        assert [f.name for f in plugins.describe("methods", name).fields if mark(f.kind, Budget)] == list(WORDS)


@pytest.mark.parametrize("name", BUDGETED)
def test_one_word_takes_the_place_of_the_default(name, tmp_path):
    """A budget given in bytes beside a default in rows would leave open which of them counts."""
    assert [len(budget(c)) for c in sweep(tmp_path, f"- {name}\n")] == [1]
    assert [budget(c) for c in sweep(tmp_path, f"- {{{name}: {{bytes: [90000, 80000]}}}}\n")] == [
        {"bytes": 90000},
        {"bytes": 80000},
    ]


def test_a_list_is_an_axis_and_a_list_in_it_is_by_layer(tmp_path):
    """Budgets of layers could not be swept over, or a sweep over budgets would be taken for layers."""
    cells = sweep(tmp_path, "- {topk: {keep: [1, 0.5, [1.0, 0.25]]}}\n")
    assert [budget(c) for c in cells] == [{"keep": 1.0}, {"keep": 0.5}, {"keep": [1.0, 0.25]}]
    assert type(cells[0].method.args["keep"]) is float
    assert len({c.key for c in cells}) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {topk: {keep: 64}}", "4: method.topk.keep is 64, expected a share in (0, 1] (a number of rows is the"),
        ("- {topk: {rows: 0.25}}", "4: method.topk.rows is 0.25, expected a whole number of at least 1 (a share is"),
        ("- {topk: {rows: [[4, 0]]}}", "4: method.topk.rows is [4, 0], expected a whole number"),
        ("- {topk: {keep: 0.5, rows: 4}}", "4: method.topk has rows beside keep, expected one of keep, rows, bytes"),
        ("- {topk: {keep: null}}", "4: topk: give one of keep, rows, bytes, got none"),
        ("- full\n  - {snapkv: {rows: 32}}", "5: snapkv: rows = 32 leaves nothing beside the window of 32: raise rows"),
        ("- {snapkv: {kernel: [5, 4]}}", "4: snapkv: a pooling kernel is odd, got 4: try 5"),
        ("- {loki: {d: null}}", "4: loki: give either d or variance"),
        ("- {quest: {rows: [[64, 8]]}}", "4: quest: rows = 8 is less than a page of 16: raise rows"),
        ("- {pyramidkv: {rows: [[64, 32]]}}", "4: pyramidkv: one budget is spread over all layers: rows is one number"),
        ("- {top_theta: {vmc: mean}}", "4: top_theta: placement: pre lacks no weight without sdc"),
        ("- {top_theta: {thresholds: {corpus: prose}}}", "4: thresholds: 'prose' is what tasks measure on"),
    ],
)
def test_plan_tells_what_does_not_go_together(text, words, tmp_path):
    """A mistake that only a compute node finds costs a job's time in the queue."""
    (error,) = told(tmp_path, text + "\n")
    assert error.startswith(words)


def test_what_is_excluded_breaks_no_rule(tmp_path):
    """A combination that never runs must not stop the others of its product."""
    text = "- {snapkv: {rows: [32, 64], window: [8, 32]}}\nexclude: [{method: {snapkv: {rows: 32, window: 32}}}]\n"
    assert len(sweep(tmp_path, text)) == 3


def said(work):
    try:
        work()
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in ("methods", "tasks") for n in plugins.names(k)])
def test_rules_say_the_same_without_import(kind, name):
    """`plan` would refuse what runs, or let pass what the plug-in refuses when it is made."""
    plugin = plugins.describe(kind, name)
    given = {f.name: f.default for f in plugin.fields}
    if plugins.REQUIRED in given.values():
        pytest.skip("it has arguments without a default")
    assert said(lambda: plugins.check(kind, name, given)) == said(lambda: plugins.load(kind, name)(**given))


def test_list_of_methods_has_shape_papers_and_defaults():
    """What a method is by default, and after which paper, could only be found in its source."""
    rows = show.catalogue("methods")
    lines = show.listing(rows).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("pyramidkv "))
    assert lines[at + 1].strip().startswith("evict; arXiv 2406.02069; rows=2048, beta=20, window=8, kernel=7")
    (full,) = (row for row in rows if row["name"] == "full")
    assert (full["shape"], full["papers"]) == ("direct", [])


def test_rules_are_told_without_torch():
    """`lacuna plan` must answer at once on a login node."""
    code = (
        "import sys; from lacuna.results import plugins\n"
        "try: plugins.check('methods', 'loki', {'keep': None, 'rows': None, 'bytes': None, 'd': 1, 'variance': None})\n"
        "except ValueError as error: sys.exit(('torch' in sys.modules) or 'give one of' not in str(error))\n"
        "sys.exit(2)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
