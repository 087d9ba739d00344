"""Large archives: what is shown, what is counted, what is named."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lacuna.analysis import doubts, survey
from lacuna.analysis.sources import of_frame as sources_of
from lacuna.results.archive import of_frame
from lacuna.results.cell import Cell
from lacuna.results.frame import to_frame
from lacuna.results.record import Record

# seconds by the clock on two idle cores at the usual pace, GiB of the largest process
BOUNDS = {10_000: (20, 2), 1_000_000: (60, 4)}
BUSY = 1.5  # a core whose neighbour works takes half as long again as an idle one
REPORT = """
import resource, sys, time
from lacuna import cli
start = time.monotonic()
code = cli.main(["report", sys.argv[1], "-o", sys.argv[2]])
own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
alone, shared = (used.ru_utime + used.ru_stime for used in (own, workers))
print(code, time.monotonic() - start, alone + shared / 2, max(own.ru_maxrss, workers.ru_maxrss) / 2**20)
"""


def test_whole_conditions_are_shown(demo):
    """Broken: a method is shown without the dense cells that it is compared with."""
    archive = of_frame(demo)
    shown = demo.iloc[survey.choose(archive, 30)]
    assert len(shown) <= 30
    for task in shown["task"].unique():
        assert set(shown.loc[shown["task"] == task, "method"]) >= set(demo.loc[demo["task"] == task, "method"])


def test_of_one_large_condition_methods_are_shown_dense_first(demo):
    """Broken: the first cells of a needle are all of one method, and nothing is there to compare them with."""
    needles = demo[demo["task"] == "needle"]
    shown = needles.iloc[survey.choose(of_frame(needles), 7)]
    assert "full" in set(shown["method"])
    assert len(shown) <= 7


def test_everything_small_is_shown(demo):
    """Broken: cells vanish from a report that has room for them."""
    assert len(survey.choose(of_frame(demo))) == len(demo)
    assert survey.shown(of_frame(demo), len(demo)) == ""


def test_the_overview_counts_every_record(broken):
    """Broken: failed cells, or those of conditions that are not shown, are nowhere counted."""
    archive = of_frame(broken)
    found = survey.overview(archive)
    assert (found["cells"].sum(), found["failed"].sum()) == (len(broken), 2)
    good = broken[(broken["method"] == "topk") & (broken["task"] == "needle")]
    mean = found[(found["method_label"] == "topk k=0.5") & (found["task"] == "needle")]["accuracy"].item()
    assert mean == pytest.approx(good.loc[good["method_label"] == "topk k=0.5", "accuracy"].mean())
    table = survey.lay_out(found, archive)
    assert table.rows[0][0] == "full"
    assert not any(text == "" for row in table.rows for text in row)


def test_a_cut_report_says_so(demo, monkeypatch, tmp_path):
    """Broken: a page of some cells looks like a page of all."""
    from lacuna.analysis import report

    monkeypatch.setattr(survey.choose, "__defaults__", (30,))
    monkeypatch.setattr(report, "names", lambda _: ["energy"])  # one of which the records have nothing
    text = report.write_report(demo, tmp_path, "t", "c")[0].read_text(encoding="utf-8")
    assert f"of {len(demo)} cells, whole conditions" in text
    assert "All records" in text
    assert (tmp_path / "overview.csv").is_file()


def test_each_doubt_is_named(make):
    """Broken: doubled keys, doubled questions, other schemas or unknown statuses go in or out without a word."""
    one = make.perplexity("topk", {"k": 0.5}, 0.5)
    again = Record(**{**vars(one), "cell": Cell(**{**vars(one.cell), "needs": (("basis", "abc"),)})})
    frame = to_frame([one, one, again, make.perplexity("full", {}, 1.0)])
    frame.loc[3, "status"] = "splendid"
    strange = frame.assign(key=["k1", "k1", "k2", "k3"], cell_json=[*frame["cell_json"][:3], '{"other": 1}'])
    said = " ".join(doubts.doubtful(of_frame(strange)))
    assert "1 record too many" in said
    assert "1 cell asks what another one asks too" in said
    assert "1 record of another schema" in said
    assert "k3" in said
    assert "splendid (1 record)" in said
    assert sources_of(strange).study.points["n"].tolist() == [24]


def test_samples_that_cannot_be_read_are_named(make, tmp_path):
    """Broken: a record with half a line of JSON ends the report, or its cell looks as if it had no samples."""
    from lacuna.analysis.report import write_report

    frame = to_frame([make.perplexity("full", {}, 1.0), make.perplexity("topk", {"k": 0.5}, 0.5)])
    frame.loc[1, "samples_json"] = '[{"window": 0, '
    text = write_report(frame, tmp_path, "t", "c")[0].read_text(encoding="utf-8")
    assert "1 record with samples or a ledger that cannot be read" in text


def test_failures_beyond_what_is_listed_are_counted(make, monkeypatch, tmp_path):
    """Broken: ten thousand traces make a page that no browser opens, or the others are not there."""
    from lacuna.analysis import failures
    from lacuna.analysis.report import write_report

    monkeypatch.setattr(failures, "MOST", 3)
    frame = to_frame([make.failed(r.cell) for r in make.sweep()])
    text = write_report(frame, tmp_path, "t", "c")[0].read_text(encoding="utf-8")
    assert "The first 3 of 51 are listed" in text
    assert "51 cells oom: out of memory" in text
    assert len((tmp_path / "failed.csv").read_text(encoding="utf-8").splitlines()) == 52


@pytest.mark.slow
@pytest.mark.parametrize("records", BOUNDS)
def test_a_report_of_many_records_keeps_its_bounds(records, tmp_path, pace):
    """Broken: a large sweep's report takes minutes, or more memory than a login node gives."""
    sys.path.insert(0, str(Path(__file__).parent))
    from archives import GRIDS, write

    assert GRIDS[records].records == records
    write(tmp_path / "a.parquet", GRIDS[records])
    idle = os.getloadavg()[0] < 1
    command = [sys.executable, "-c", REPORT, str(tmp_path / "a.parquet"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, clock, work, gib = map(float, done.stdout.splitlines()[-1].split())
    assert code == 0
    # where others use the cores too the clock tells of them: then what two cores took for us alone counts
    seconds = clock if idle else work / BUSY
    assert (np.array([seconds / pace, gib]) < BOUNDS[records]).all(), (idle, clock, work, gib, pace)
