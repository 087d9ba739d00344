"""The page: whole, self-contained, and the same each time."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from lacuna.analysis import drawings, report, study
from lacuna.analysis.points import from_cells
from lacuna.analysis.provenance import notices
from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.archive import of_frame
from lacuna.results.cell import Cell, Spec
from lacuna.results.frame import to_frame
from lacuna.results.record import Record
from lacuna.results.store import Store

COMMAND = "lacuna report <demo> & more"


class Page(HTMLParser):
    """Collects what a browser would fetch, the open tags, and the text."""

    def __init__(self, text):
        super().__init__()
        self.links, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note it and what it refers to."""
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        """It must be the last one opened."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Keep the text."""
        self.text += data


@pytest.fixture(scope="module")
def written(demo, tmp_path_factory):
    """The paths of the demo's report, and a call for each time that its points were computed."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "from_cells", lambda cells: calls.append(1) or from_cells(cells))
        return report.write_report(demo, tmp_path_factory.mktemp("demo") / "out", "t", "c"), calls


@pytest.fixture(scope="module")
def of_broken(broken, tmp_path_factory):
    """The paths of the report of a sweep in which something went wrong."""
    return report.write_report(broken, tmp_path_factory.mktemp("out"), "A <title>", COMMAND)


@pytest.fixture(scope="module")
def page(of_broken):
    return Page(of_broken[0].read_text(encoding="utf-8"))


def test_all_files_are_there(written):
    """Broken: the command prints a path of a file that it has not written, or leaves one out."""
    paths, _ = written
    assert paths[0].name == "index.html"
    assert sorted(p for p in paths[0].parent.rglob("*") if p.is_file()) == sorted(paths)
    figures = {p.name for p in paths if p.parent.name == "figures"}
    drawn = {name.split(".")[0] for name in figures}
    assert drawn >= {"accuracy_bytes", "accuracy_density", "decode_time", "needle_heatmap", "pareto_speed"}
    assert figures == {f"{n}.{kind}" for n in drawn for kind in ("pdf", "png", "svg")}
    text = paths[0].read_text(encoding="utf-8")
    absent = len(plugins.names("figures")) - len(drawn)
    assert text.count("Not drawn: needs") == absent
    # folded away behind what there is to see
    assert f"</figure><details><summary>{absent} figures not drawn, for want of records</summary>" in text


def test_the_page_fetches_nothing_and_is_well_formed(page):
    """Broken: the page is empty on a machine without network, or a tag is not closed."""
    assert all(link.startswith(("#", "figures/", "data:image/svg+xml;base64,")) for link in page.links)
    assert page.open == []


def test_text_is_escaped(page):
    """Broken: a reason with angle brackets becomes markup."""
    assert "A <title>" in page.text
    assert COMMAND in page.text
    assert "gaps <but> attended 100% & more" in page.text


def test_failures_and_mixtures_are_named(page):
    """Broken: two hosts, a changed tree or failed cells are in the numbers and not on the page."""
    assert "49 ended well, 2 did not" in page.text
    assert "2 hosts" in page.text
    assert "no revision holds" in page.text
    assert "out of memory: 3.1 GiB asked" in page.text


def test_sections_are_linked(page):
    """Broken: the links at the top lead nowhere."""
    anchors = [link for link in page.links if link.startswith("#")]
    assert len(anchors) == 7


def test_equal_records_give_equal_files(broken, of_broken, tmp_path):
    """Broken: a figure in the archive cannot be checked by making it again."""
    again = report.write_report(broken, tmp_path, "A <title>", COMMAND)
    for one, other in zip(of_broken, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_a_sweep_in_which_all_failed_has_a_page(make, tmp_path):
    """Broken: the report is not there when it is needed most."""
    frame = to_frame([make.failed(r.cell) for r in make.sweep()])
    text = report.write_report(frame, tmp_path, "t", "c")[0].read_text(encoding="utf-8")
    assert text.count("Not drawn: needs a cell") == len(plugins.names("figures"))


def test_a_new_figure_is_one_file(demo, tmp_path, monkeypatch):
    """Broken: adding a figure takes an edit elsewhere."""
    monkeypatch.setattr(report, "names", lambda _: ["mine"])
    monkeypatch.setattr(drawings, "load", lambda kind, _: plugins.load(kind, "decode_time"))
    monkeypatch.setattr(
        drawings, "describe", lambda kind, name: plugins.describe(kind, "decode_time" if name == "mine" else name)
    )
    assert tmp_path / "figures" / "mine.pdf" in report.write_report(demo, tmp_path, "t", "c")


def test_tasks_without_a_file_are_named(make, tmp_path):
    """Broken: cells of a task that this version does not know vanish."""
    cell = make.cell("full", {}, "perplexity")
    gone = make.record(make.cell("full", {}, "gone"), {"x": 1.0}, [])
    frame = to_frame([make.record(cell, {"perplexity": 2.0}, []), gone])
    text = report.write_report(frame, tmp_path, "t", "c")[0].read_text(encoding="utf-8")
    assert "no file for the tasks gone" in text


def test_summary_is_made_of_the_numbers(page):
    """Broken: the sentences on top say other than the table below."""
    assert re.search(r"perplexity: full has 10\.42 \[.*every method loses; .* topk k=0\.5: \+0\.014", page.text)
    assert "decode ms: full has 4.011" in page.text


def test_analysis_needs_no_torch():
    """Broken: `report` and `collect` take seconds to start, and cannot run on a login node without torch."""
    code = "import sys, lacuna.analysis.report, lacuna.analysis.diff; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_doubtful_records_are_named(make):
    """Broken: two versions of a method, a key with two results, or a NaN go into the numbers without a word."""
    old = make.perplexity("topk", {"k": 0.5}, 0.5)
    new = Record(**{**vars(old), "cell": Cell(**{**vars(old.cell), "method": Spec("topk", 2, {"k": 0.5})})})
    again = Record(**{**vars(old), "samples": old.samples[1:]})
    frame = to_frame([old, again, new, make.record(make.cell("full", {}, "needle"), {"accuracy": float("nan")}, [])])
    study_ = Study(frame)
    said = " ".join(notices(of_frame(frame), study_.cells, study_.points))
    assert "2 versions of the method topk" in said
    assert "1 record too many" in said
    assert "1 key has other results" in said
    assert "1 result ended well and has no number: full (needle accuracy)" in said


def test_the_paper_folder_is_whole(written):
    """Broken: LaTeX asks for a figure or table that is not in the folder, or a caption stops it."""
    folder = written[0][0].parent / "paper"
    text = (folder / "all.tex").read_text(encoding="utf-8")
    wanted = re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", text), re.findall(r"\\input\{(.*?)\}", text)
    assert wanted[0]
    assert wanted[1] == ["table", "equal_bytes"]
    there = {p.name for p in folder.iterdir()}
    assert there == {"all.tex", *(f"{n}.pdf" for n in wanted[0]), *(f"{n}.tex" for n in wanted[1])}
    assert text.count("\\begin{") == text.count("\\end{")
    assert text.isascii()


def test_the_report_says_bound_and_energy(make, tmp_path):
    """Broken: a speed-up stands without what bytes allow, or joules are measured and not shown."""
    found = [make.decode_time("full", {}, 1.0), make.decode_time("streaming_llm", {"window": 0.25}, 0.25)]
    found = [
        Record(**{**vars(r), "metrics": {**r.metrics, "energy_j_per_token": e}})
        for r, e in zip(found, (4, 3), strict=True)
    ]
    text = report.write_report(to_frame(found), tmp_path, "t", "c")[0].with_name("table.md").read_text(encoding="utf-8")
    assert "| bound | of bound | J/token | J of full |" in text
    assert re.search(r"\| 3\.45× \| 4\d% \| 3\.000 \| 0\.75× \|", text)


def test_points_are_computed_once(written):
    """Broken: every figure computes all intervals again, and a report takes ten times as long."""
    assert written[1] == [1]


@pytest.mark.parametrize(
    ("name", "told"), [("store", "is a store of records"), ("sweep.yaml", "is a file, a report is")]
)
def test_a_report_is_not_written_into_a_store_or_a_file(demo, tmp_path, name, told):
    """Pages and figures would lie among records, or an error of the system name the sweep after a minute of drawing."""
    Store(tmp_path / "store").begin()
    (tmp_path / "sweep.yaml").write_text("")
    with pytest.raises(ValueError, match=told):
        report.write_report(demo, tmp_path / name, "t", "c")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["lacuna-store.json", "store", "sweep.yaml"]
