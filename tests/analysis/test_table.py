"""The table in each of its forms."""

import csv
import io
import math
import re

import pytest

from lacuna.analysis.numbers import letter, number, signed
from lacuna.analysis.points import points
from lacuna.analysis.render import WIDTH, escape_latex, terminal_table, to_csv, to_latex, to_markdown
from lacuna.analysis.table import lay_out, long_cells, summary
from lacuna.results.frame import to_frame


def test_a_row_per_method_and_budget(demo):
    """Broken: a method or budget is missing in the table, or dense is not its first row."""
    table = summary(demo)
    assert len(table) == 10
    assert table["method_label"].iloc[0] == "full"
    assert {"perplexity", "perplexity.low", "perplexity.diff.high", "decode ms.speedup"} <= set(table.columns)


def test_cells_that_failed_say_why(broken):
    """Broken: a cell that ran out of memory is a blank, and a reader takes the table for whole."""
    text = to_markdown(lay_out(points(broken), long_cells))
    assert "invalid [b]" in text
    assert "[a] 1 of 3 cells oom: out of memory" in text
    assert "[b] invalid: the method should leave gaps" in text
    rows = [line for line in text.split("\n") if line.startswith("|")]
    assert not any(re.search(r"\|\s+\|", row) for row in rows)


def test_a_sweep_in_which_all_failed_has_a_table(make):
    """Broken: the report of a sweep that went wrong ends in a traceback, when it is needed most."""
    text = terminal_table(to_frame([make.failed(r.cell) for r in make.sweep()]))
    assert text.count("oom [a]") == 30


@pytest.mark.parametrize("contexts", [(512,), (256, 512, 1024, 2048, 4096)])
def test_a_terminal_is_wide_enough(make, contexts):
    """Broken: lines wrap, and no column can be read."""
    text = terminal_table(to_frame(make.sweep(prompts=contexts)))
    assert max(map(len, text.split("\n"))) <= WIDTH
    for label in ("full", "loki k=0.125 d=0.25"):
        assert any(line.startswith(label) for line in text.split("\n"))


def test_csv_has_all_digits(demo):
    """Broken: numbers of the CSV file are rounded for reading."""
    rows = list(csv.DictReader(io.StringIO(to_csv(summary(demo)))))
    said = demo.loc[(demo["task"] == "perplexity") & (demo["method"] == "full"), "perplexity"].item()
    assert float(rows[0]["perplexity"]) == pytest.approx(said, rel=1e-12)


def test_latex_escapes_what_it_must(broken):
    """Broken: `streaming_llm` or a per cent sign in a reason stops LaTeX."""
    text = to_latex(lay_out(points(broken), long_cells))
    body = text[: text.index("\n% ")]
    assert r"streaming\_llm" in body
    assert not re.search(r"(?<!\\)[%#_]", body.replace("_{", ""))
    assert body.isascii()
    assert len({line.count(" & ") for line in body.split("\n") if line.endswith(r"\\")}) == 1
    assert escape_latex("a_b & 5% \\x ~^") == r"a\_b \& 5\% \textbackslash{}x \textasciitilde{}\textasciicircum{}"


def test_markdown_rows_hold_together(make):
    """Broken: a reason with a bar or a line break tears the table."""
    cells = [make.perplexity("full", {}, 1.0), make.failed(make.cell("topk", {"k": 0.5}, "needle"), reason="a | b\nc")]
    text = to_markdown(lay_out(points(to_frame(cells)), long_cells))
    rows = [line for line in text.split("\n") if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.98333, "0.983"), (12.3456, "12.35"), (1234.5, "1234"), (2e-5, "2.00e-05"), (float("nan"), "–")],
)
def test_numbers_have_four_digits(value, text):
    """Broken: numbers in tables have too few digits to compare, or too many to read."""
    assert number(value) == text


def test_only_columns_that_are_there_are_explained(make):
    """Broken: three lines below a table are read in vain for a column that it does not have."""
    scores = lay_out(points(to_frame([make.perplexity("full", {}, 1.0)])), long_cells)
    assert not {"speed-up", "Bound", "Peak", "Holm"} & set(re.findall(r"[\w-]+", scores.about))
    assert lay_out(points(to_frame([make.failed(make.cell())])), long_cells).about == "No cell has samples."
    both = [make.decode_time("full", {}, 1.0), make.decode_time("topk", {"k": 0.5}, 0.5)]
    timed = lay_out(points(to_frame(both)), long_cells).about
    assert all(word in timed for word in ("Speed-up: ", "Bound: ", "Holm's"))


def test_few_samples_are_named(make):
    """Broken: an interval of three windows looks as sure as one of three hundred."""
    few, one = ([make.perplexity(m, {}, 1.0, windows=w) for m in ("full",)] for w in (9, 10))
    assert (
        "Of fewer than 10 samples the bootstrap's intervals are too narrow."
        in lay_out(points(to_frame(few)), long_cells).about
    )
    assert "too narrow" not in lay_out(points(to_frame(one)), long_cells).about
    assert "over the one comparison here" in lay_out(points(to_frame(few)).assign(p=0.5), long_cells).about


def test_signs_and_letters():
    """Broken: a difference without a sign, or two footnotes with one letter."""
    assert [signed(v) for v in (0.5, -0.5, 0.0)] == ["+0.500", "−0.500", "±0.000"]
    assert len({letter(i) for i in range(800)}) == 800


def test_the_correction_is_over_the_table_that_is_shown(make):
    """Broken: a table of one task says its p are corrected over its own comparisons, and they are over all tasks'."""
    methods = (("full", {}, 1.0), ("topk", {"k": 0.5}, 0.5), ("loki", {"k": 0.5}, 0.5), ("loki", {"k": 0.25}, 0.25))
    found = points(to_frame([make.perplexity(m, a, d) for m, a, d in methods]))
    rows = lay_out(found.assign(p=[math.nan, 0.02, 0.02, 0.9], p_holm=0.001), long_cells).rows
    assert not any("**" in row[2] for row in rows)  # 3 x 0.02 is more than 0.05
    sure = lay_out(found.assign(p=[math.nan, 0.01, 0.01, 0.9], p_holm=0.5), long_cells)
    assert ["**" in row[2] for row in sure.rows] == [False, True, True, False]
    assert "all 3 comparisons here" in sure.about
