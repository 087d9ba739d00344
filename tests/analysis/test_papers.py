"""Tables as the papers have them, and figures that are the same each time."""

import pytest

from lacuna.analysis import redraw
from lacuna.analysis.grids import Column, Grid, lay_out
from lacuna.analysis.points import points
from lacuna.analysis.report import write_sources
from lacuna.analysis.sources import of_frame
from lacuna.results import plugins
from lacuna.results.frame import to_frame, write

PAPERS = plugins.names("papers")
GRID = Grid(
    "A table.",
    ("perplexity",),
    (Column("full", "full"), Column("top-k 1/4", "topk", {"keep|k": 0.25}), Column("H2O", "h2o")),
    (("Llama", ("5.1", "5.2", "5.3")),),
    "a paper",
)


def test_ours_stands_below_what_is_published(demo):
    """Broken: a reader takes another model's number for one that was measured here, or ours is of another budget."""
    table = lay_out(GRID, points(demo))
    assert table.rows[0] == ["Llama (published)", "5.1", "5.2", "5.3"]
    assert table.rows[1][0] == "pocket"
    truth = demo.loc[(demo["method_label"] == "topk k=0.25") & (demo["task"] == "perplexity"), "perplexity"].item()
    assert float(table.rows[1][2].split()[0]) == pytest.approx(truth, abs=0.01)
    assert table.rows[1][3] == "not run"


def test_two_texts_are_two_rows(make):
    """Broken: perplexities of prose and of code stand in one field, and nobody knows which is which."""
    cells = [
        make.perplexity(m, a, d, seed=s) for s in (0, 1) for m, a, d in (("full", {}, 1.0), ("topk", {"k": 0.25}, 0.25))
    ]
    rows = lay_out(GRID, points(to_frame(cells))).rows[1:]
    assert [row[0] for row in rows] == ["pocket perplexity seed=0", "pocket perplexity seed=1"]
    assert not any(";" in text for row in rows for text in row)


def test_a_cell_that_failed_says_why(broken, make):
    """Broken: a cell that ran out of memory counts as one that nobody ran."""
    failed = make.failed(make.cell("topk", {"k": 0.25}, "perplexity"))
    table = lay_out(GRID, points(to_frame([make.perplexity("full", {}, 1.0), failed])))
    assert table.rows[-1][2] == "oom [a]"
    assert "out of memory" in table.notes[0]


def test_either_name_of_a_budget_is_found(make):
    """Broken: archives of before `keep`, or those of after, have no row in a paper's table."""
    cells = [make.perplexity("topk", {name: 0.25}, 0.25, seed=i) for i, name in enumerate(("k", "keep"))]
    rows = lay_out(GRID, points(to_frame(cells))).rows[1:]
    assert [row[2] != "not run" for row in rows] == [True, True]


def test_means_are_of_the_columns_beside_them(make):
    """Broken: a mean of 16 tasks is one of other cells than those that stand beside it."""
    grid = Grid("t", ("needle",), (Column("mean"),), (), "p", spread="length", average=True)
    cells = [make.needle("topk", {"k": 0.5}, 0.5, n, depths=d) for n, d in ((256, 5), (512, 4))]
    table = lay_out(grid, points(to_frame(cells)))
    assert table.headings[:2] == ["row", "mean"]
    assert table.rows[0][1].endswith("of 2")


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_is_whole(name):
    """Broken: a paper's set names a figure or task that is not there, or a published row has too many values."""
    module = plugins.load("papers", name)
    assert set(module.FIGURES) <= set(plugins.names("figures"))
    for grid in module.TABLES.values():
        assert all(0 < len(cells) <= len(grid.columns) for _, cells in grid.published)
        assert all(text for _, cells in grid.published for text in cells)
        assert "arXiv" in module.__doc__


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_report_has_its_tables(name, demo, tmp_path):
    """Broken: --paper gives the page of everything, or leaves its tables out of the folder for LaTeX."""
    paths = {p.relative_to(tmp_path).as_posix() for p in write_sources(of_frame(demo), tmp_path, "t", "c", name)}
    module = plugins.load("papers", name)
    for table in module.TABLES:
        assert {f"{table}.md", f"{table}.tex", f"paper/{table}.tex"} <= paths
    figures = {p.split("/")[1].split(".")[0] for p in paths if p.startswith("figures/")}
    assert figures
    assert figures <= set(module.FIGURES)


def test_loki_s_average_loss_is_that_of_its_abstract():
    """Broken: a published value was copied wrong (the abstract: 6.8 points lost on average at k = d = 1/4)."""
    tables = plugins.load("papers", "loki").TABLES
    before = {name: list(map(float, (c[0], c[4]))) for name, c in tables["loki_table3"].published}
    after = {name: float(cells[2]) for name, cells in tables["loki_table4"].published}
    losses = [full - max(pre, after[name]) for name, (full, pre) in before.items()]
    assert len(losses) == 8
    assert sum(losses) / 8 == pytest.approx(6.85, abs=0.01)


def test_longbench_s_trec_carries_the_gain():
    """Broken: a published value stands below another task, or in another row: without TREC PyramidKV's lead is 0.1."""
    table = plugins.load("papers", "longbench").TABLES["longbench_table1"]
    assert (len(table.columns), table.columns[10].heading) == (17, "trec")
    rows = {name.removeprefix("Llama-3-8B-Instruct C=128 "): cells for name, cells in table.published}
    rest = {kept: (16 * float(rows[kept][0]) - float(rows[kept][10])) / 15 for kept in ("SnapKV", "H2O", "PyramidKV")}
    assert rest == pytest.approx({"SnapKV": 34.87, "H2O": 35.17, "PyramidKV": 35.30}, abs=0.015)


def test_our_tasks_of_longbench_stand_below_theirs(make, monkeypatch):
    """Broken: a task's column holds another task's score, or the mean is not over the tasks that were run."""
    columns = plugins.load("papers", "longbench").TABLES["longbench_table1"].columns
    found = points(to_frame([make.needle("full", {}, 1.0, 256)])).iloc[[0, 0]].assign(task="longbench")
    found["task_args"] = [{"task": "trec"}, {"task": "lcc"}]
    found["value"] = [0.5, 0.25]
    table = lay_out(plugins.load("papers", "longbench").TABLES["longbench_table1"], found)
    ours = dict(zip(table.headings[1:], table.rows[-1][1:], strict=True))
    assert ours["trec"].startswith("0.500")
    assert ours["lcc"].startswith("0.250")
    assert ours["mean of 16"] == "0.375 of 2"
    assert sum(text == "not run" for text in ours.values()) == len(columns) - 3


def test_figures_of_an_archive_are_the_same_again(make, tmp_path, capsys):
    """Broken: a figure holds a time or a random id, or `make figures` passes one that is another."""
    (tmp_path / "archives").mkdir()
    write(
        to_frame([make.perplexity("full", {}, 1.0), make.perplexity("topk", {"k": 0.5}, 0.5)]),
        tmp_path / "archives" / "a.csv",
    )
    where = [str(tmp_path / "archives"), str(tmp_path / "out")]
    assert redraw.main(where) == 1
    assert redraw.main([*where, "--accept"]) == 0
    assert redraw.main(where) == 0
    file = tmp_path / "archives" / redraw.DIGESTS
    name = file.read_text(encoding="utf-8").splitlines()[0].split("  ")[1]
    assert (tmp_path / "out" / name).is_file()
    file.write_text(file.read_text(encoding="utf-8").replace(name, "a/gone.pdf").replace("0", "1"), encoding="utf-8")
    capsys.readouterr()
    assert redraw.main(where) == 1
    said = capsys.readouterr().out
    assert f"new: {name}" in said
    assert "gone: a/gone.pdf" in said
    assert "another: " in said
