"""The command line answers every input, good or bad, in a sentence and with the right exit code."""

import errno
import json
import shlex
import sys
import types
from pathlib import Path

import pytest

from lacuna.jobs.show import named
from lacuna.jobs.sweep import read
from lacuna.results.record import Record
from lacuna.results.store import Store

SWEEP = """name: tiny
model: pocket
method: [full, {loki: {keep: 0.25, basis: {tokens: 2048}}}]
task: {perplexity: {window: 64, windows: 1}}"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with a sweep of two cells and a calibration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LACUNA_STORE", raising=False)
    Path("tiny.yaml").write_text(SWEEP, encoding="utf-8")
    return tmp_path


@pytest.fixture
def runner(here, monkeypatch):
    """Stand-ins for the rooms that run and draw: what is tested is who is called with what; gives what `run_cells` got."""
    calls, fate = [], {}

    def run_cells(cells, store, ranks, tell, cell_timeout_s, known):
        calls.append(([c.task.name for c in cells], cell_timeout_s))
        statuses = {}
        for cell in cells:
            if all(statuses.get(key, "ok") == "ok" for _, key in cell.needs):
                statuses[cell.key] = fate.get(cell.task.name, "ok")
                store.put(Record(cell, statuses[cell.key], "because" * (cell.task.name in fate)))
        return statuses

    stand_in(monkeypatch, "harness.run", run_cells=run_cells)
    stand_in(monkeypatch, "results.frame", to_frame=list)
    shown = {"terminal_table": lambda rows: f"TABLE of {len(rows)}", "terminal_tables": None, "aligned": None}
    stand_in(monkeypatch, "analysis.render", **shown)
    monkeypatch.delitem(sys.modules, "lacuna.jobs.here", raising=False)
    yield types.SimpleNamespace(calls=calls, fate=fate)
    sys.modules.pop("lacuna.jobs.here", None)


def stand_in(monkeypatch, name, **content):
    module = types.ModuleType(f"lacuna.{name}")
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "COMMAND"),
        (("lost",), "invalid choice"),
        (("list", "planets"), "invalid choice"),
        (("plan", "none.yaml"), "none.yaml:1: cannot be read: No such file or directory"),
        (("plan", "wrong.yaml"), "wrong.yaml:1: unknown model 'poket': did you mean 'pocket'?\nwrong.yaml:2: unknown method 'lokki': did you mean 'loki'?"),
        (("plan", "tiny.yaml", "--set", "rank=2"), "--set: unknown setting 'rank': did you mean 'ranks'?"),
        (("plan", "tiny.yaml", "--retry", "eror"), "unknown status 'eror' to retry: did you mean 'error'?"),
        (("plan", "tiny.yaml", "--store", "tiny.yaml"), "tiny.yaml is not a lacuna store; set LACUNA_STORE or --store"),
        (("status", "tiny.yaml", "--store", "."), "is not a lacuna store; set LACUNA_STORE or --store"),
        (("why", "tiny.yaml", "zzz"), "no cell of tiny has a key that begins with 'zzz'"),
        (("run", "tiny.yaml", "--cell-timeout", "0"), "expected a number of seconds above 0, got '0'"),
        (("run", "wrong.yaml"), "wrong.yaml:1: unknown model 'poket'"),
        (("plan", "tiny.yaml", "--data", "nowhere"), "--data nowhere: there is no such folder"),
        (("diff", "a.csv", "b.csv", "--set", "ranks=2"), "--set ranks=2 sets nothing: a.csv holds what was measured"),
        (("bench", "--rows", "0"), "expected a whole number above 0, got '0'"),
        (("bench", "-o", "times.txt"), "times are written as .csv, not 'times.txt'"),
        (("bench", "--batch", "4"), "--batch sets nothing without --rows"),
        (("bench", "loki_pipelin"), "unknown op 'loki_pipelin': did you mean 'loki_pipeline'?"),
        (("verify", "gat"), "unknown op 'gat': did you mean 'gate'?"),
    ],
)  # fmt: skip
def test_bad_input(here, outcome, argv, said):
    """A user's mistake would end in a traceback, or look like success."""
    Path("wrong.yaml").write_text("model: poket\nmethod: lokki\ntask: needle\n", encoding="utf-8")
    code, out, err = outcome(*argv)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_plan(here, outcome):
    """The plan that is shown would not be the one that `run` follows."""
    code, out, _ = outcome("plan", "tiny.yaml")
    assert code == 0
    assert "wave 1: 1 cell\n  pocket (float32, cpu, 1 rank): 1 cell\nwave 2: 2 cells\n" in out
    found = json.loads(outcome("plan", "tiny.yaml", "--json", "--set", "ranks=2")[1])
    assert found["counts"] == {"todo": 3}
    assert [group["ranks"] for wave in found["waves"] for group in wave] == [2, 2]


def test_run_goes_wave_by_wave_and_then_is_done(runner, outcome):
    """A calibration would come too late, or a second run compute everything again."""
    code, out, _ = outcome("run", "tiny.yaml", "--cell-timeout", "9")
    assert (code, runner.calls) == (0, [(["pca", "perplexity", "perplexity"], 9.0)])
    assert "TABLE of 3" in out
    assert outcome("run", "tiny.yaml")[0] == 0
    assert len(runner.calls) == 1


def test_run_says_what_waits_for_a_failure(runner, outcome):
    """A cell that could not run for want of its calibration would look like success."""
    runner.fate["pca"] = "error"
    code, _, err = outcome("run", "tiny.yaml")
    assert code == 1
    assert "not every cell is ok (1 ok, 1 error, 1 waits); `lacuna why tiny.yaml` says why" in err


def test_run_retries_what_is_asked(runner, outcome):
    """A cell that failed once could never be run again."""
    runner.fate["perplexity"] = "oom"
    assert outcome("run", "tiny.yaml")[0] == 1
    runner.fate.clear()
    assert outcome("run", "tiny.yaml")[0] == 1
    assert outcome("run", "tiny.yaml", "--retry", "oom,error")[0] == 0


def test_run_names_cells_for_other_ranks(runner, outcome):
    """A sweep for two ranks would run on one, or do nothing without a word."""
    Path("tiny.yaml").write_text(SWEEP + "\nranks: [1, 2]\n", encoding="utf-8")
    code, out, _ = outcome("run", "tiny.yaml")
    assert code == 1
    assert "3 cells for 2 ranks, this run has 1: `mpirun -np 2 lacuna run tiny.yaml`, or --set ranks=1" in out
    assert [names for names, _ in runner.calls] == [["pca", "perplexity", "perplexity"]]


def test_what_to_type_next_means_the_same_cells(runner, outcome):
    """The command told after a failure would look at other cells, or into another store."""
    runner.fate["perplexity"] = "oom"
    _, _, err = outcome("run", "tiny.yaml", "--set", "seed=3", "--store", "my store")
    command = err.split("`")[1]
    assert command == "lacuna why tiny.yaml --set seed=3 --store 'my store'"
    assert outcome(*shlex.split(command)[1:])[1].count("oom: because") == 2


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device", "store/x"), ConnectionError("lost")]
)
def test_what_goes_wrong_during_a_run_is_no_bad_input(runner, monkeypatch, outcome, error):
    """A script that looks at exit codes would mend a sweep file where a disk is full or a rank was killed."""

    def fail(*_):
        raise error

    stand_in(monkeypatch, "harness.run", run_cells=fail)
    code, _, said = outcome("run", "tiny.yaml")
    assert (code, said) == (1, "lost\n" if isinstance(error, ConnectionError) else "store/x: No space left on device\n")


def test_status_and_why(here, outcome):
    """What failed, and why, could not be found out."""
    store = Store("store")
    sweep = read(Path("tiny.yaml"), store)
    (needed,), (full, loki) = sweep.needed, sweep.cells
    job = {"slurm": {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}}
    store.put(Record(needed, "oom", "no memory left", "Traceback\nOutOfMemoryError", provenance=job))
    log = store.logs() / "7_1" / "7_1_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {i}\n" for i in range(100)), encoding="utf-8")
    _, out, _ = outcome("status", "tiny.yaml")
    assert [line.split() for line in out.splitlines()] == [
        ["method", "task", "oom", "todo", "waits"],
        ["full", "pca", "1", "0", "0"],
        ["full", "perplexity", "0", "1", "0"],
        ["loki", "perplexity", "0", "0", "1"],
        ["all", "1", "1", "1"],
        ["1", "to", "run"],
        [full.key, *named(full).split()],
    ]
    code, out, _ = outcome("why", "tiny.yaml")
    assert code == 0
    assert (
        f"{needed.key}  {named(needed)}\n  oom: no memory left\n  | Traceback\n  | OutOfMemoryError\n  log {log}\n  > line 85"
        in out
    )
    assert f"{loki.key}  {named(loki)}\n  waits: waits for {needed.key} which is oom" in out
    assert full.key not in out
    assert outcome("why", "tiny.yaml", full.key[:8])[1] == f"{full.key}  {named(full)}\n  todo: no record yet\n"


def test_a_cell_is_named_by_what_is_not_the_default(here):
    """A line of `status` would be three lines of defaults, and two cells of one sweep could bear one name."""
    Path("tiny.yaml").write_text(SWEEP + "\nseed: [0, 3]\n", encoding="utf-8")
    sweep = read(Path("tiny.yaml"), Store("store"))
    assert [named(c) for c in sweep.cells] == [
        f"pocket x {method} x perplexity window=64 windows=1{seed}"
        for method in ("full", "loki keep=0.25 d=0.25")
        for seed in ("", " x seed=3")
    ]


def test_submit_gets_the_plan(here, monkeypatch, outcome):
    """A dry run would submit, or a submission would not hold what the plan shows."""
    got = []
    stand_in(
        monkeypatch,
        "jobs.submit",
        submit=lambda plan, name, store, site: got.append((len(plan.todo), name, site)) or ["1_0"],
        dry_run=lambda plan, name, store, site: f"#SBATCH {len(plan.todo)} {name} {site}",
    )
    assert outcome("submit", "tiny.yaml", "--site", "onebox", "--dry-run") == (0, "#SBATCH 3 tiny.yaml onebox\n", "")
    assert got == []
    assert outcome("submit", "tiny.yaml", "--site", "onebox") == (0, "", "")
    assert got == [(3, "tiny.yaml", "onebox")]


def test_cells_that_a_submission_ran_here_are_judged_as_by_run(runner, monkeypatch, outcome):
    """A script that submits to its own machine would take a failed sweep for a good one."""
    stand_in(monkeypatch, "jobs.submit", submit=lambda plan, name, store, site: None, dry_run=None)
    code, out, err = outcome("submit", "tiny.yaml", "--site", "local")
    assert (code, out, err) == (1, "no cell has a record yet\n", "not every cell has run (3 todo)\n")


@pytest.mark.parametrize("worse", [True, False])
def test_diff_fails_when_it_got_worse(runner, monkeypatch, outcome, worse):
    """A regression would pass a nightly check."""
    stand_in(monkeypatch, "results.frame", to_frame=list, read=lambda path: [path.name])
    found = types.SimpleNamespace(text="told", worse=worse)
    stand_in(monkeypatch, "analysis.diff", compare=lambda a, b: found if (a, b) == (["a.csv"], ["b.parquet"]) else None)
    assert outcome("diff", "a.csv", "b.parquet") == (int(worse), "told\n", "")


def test_a_condition_that_nothing_meets_is_one_sentence(runner, monkeypatch, outcome):
    """A table of no cells would look like a result."""

    def where(frame, conditions):
        raise ValueError(f"{conditions}: no record has that")

    sources = types.SimpleNamespace(where=lambda conditions: where(None, conditions))
    stand_in(monkeypatch, "analysis.sources", of_frame=None, read=lambda path: path, together=lambda several: sources)
    stand_in(monkeypatch, "analysis.doubts", doubtful=None)
    code, out, err = outcome("table", "a.csv", "--where", "task=lost")
    assert (code, out, err) == (2, "", "['task=lost']: no record has that\n")


def test_report_of_nothing(runner, monkeypatch, outcome):
    """An empty report would look like a result."""
    stand_in(monkeypatch, "analysis.report", write_sources=None)
    stand_in(monkeypatch, "analysis.sources", of_frame=list, read=None, together=None)
    stand_in(monkeypatch, "results.frame", to_frame=list, read=None)
    code, _, err = outcome("report", "tiny.yaml")
    assert (code, err) == (2, "no cell of tiny.yaml has a record in store; `lacuna run` it, or see --store\n")


def test_doctor(here, outcome):
    """Nobody would be told what a machine lacks."""
    code, out, _ = outcome("doctor", "--store", "fresh")
    assert (code, len(out.splitlines())) == (0, 13)
    assert all(line.startswith(("yes", "no ")) for line in out.splitlines())
