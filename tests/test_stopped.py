"""Ctrl-C ends every command in one line and code 130, at whatever moment it comes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from configparser import ConfigParser

import pytest

from lacuna.jobs.local import started_in
from lacuna.results.plugins import ROOT

SWEEP = "model: pocket\nmethod: full\ntask: {perplexity: {window: 64, windows: 1}}\n"
STOPPED = b"stopped; what was finished is kept, the same command goes on from there\n"
# imports a module of ours as Python's console scripts do, and does something when it comes to another one; whoever
# runs these tests in the background has Ctrl-C ignored, and so would each command here
AT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.{heard})
class At:
    def find_spec(self, name, *_):
        if name == {module!r}:
            sys.meta_path.remove(self)
            {deed}
sys.meta_path.insert(0, At())
from lacuna.__main__ import main
sys.exit(main())
"""
KILL = "os.kill(os.getpid(), signal.SIGINT)"


@pytest.fixture
def start(tmp_path):
    """Start a command that does `deed` when it comes to import `module`; gives the process."""
    (tmp_path / "tiny.yaml").write_text(SWEEP)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "LACUNA_STORE": "store"}
    begun = []

    def start(module, deed, *argv, before=(), heard="default_int_handler", **how):
        command = [*before, sys.executable, "-c", AT.format(module=module, deed=deed, heard=heard), *argv]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        begun.append(subprocess.Popen(command, cwd=tmp_path, env=env, **pipes, **how))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()


def end(process):
    err = process.communicate(timeout=120)[1]
    return process.returncode, err


@pytest.mark.parametrize(
    "module", ["lacuna.cli", "argparse", "lacuna.jobs.commands", "lacuna.results.plugins", "lacuna.jobs.sweep", "yaml",
               "lacuna.jobs.plan"],
)  # fmt: skip
def test_while_a_command_starts(module, start):
    """Whoever changes his mind at once would be answered with a page of Python."""
    assert end(start(module, KILL, "plan", "tiny.yaml")) == (130, STOPPED)


@pytest.mark.parametrize("delay_s", [0, 0.01, 0.03, 0.1, 0.3, 1.0])
def test_a_moment_after_a_run_began(delay_s, start):
    """A run that is stopped while torch is imported would end in a page of Python, or as if a signal had killed it."""
    process = start("lacuna.cli", "os.write(1, b'.')", "run", "tiny.yaml")
    assert process.stdout.read(1) == b"."
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    code, err = end(process)
    assert code == 130
    assert err.endswith(STOPPED)
    assert b"Traceback" not in err


def test_while_a_cell_runs(start, tmp_path):
    """A run would lose what its cell had written down, or record a failure that was none."""
    stop = f"from lacuna.harness.journal import Journal; Journal.each = lambda *_: {KILL}"
    process = start("lacuna.harness.tasks.perplexity", stop, "run", "tiny.yaml")
    assert end(process) == (130, STOPPED)
    assert list(tmp_path.glob("store/unfinished/*/*.jsonl"))
    assert not list(tmp_path.glob("store/records/*/*.json"))


def test_while_a_job_of_the_local_site_runs(start, tmp_path):
    """Ctrl-C reaches all processes of a terminal: the one that starts the ranks would answer with a page of Python."""
    process, log = start("nothing", "pass", "submit", "tiny.yaml", "--site", "local", start_new_session=True), b""
    try:
        log = process.stdout.readline()
        assert b"1 cells, log" in log
        for _ in range(600):
            if (rank := list(tmp_path.glob("store/logs/local/*_0_log.out"))) and rank[0].stat().st_size:
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert end(process) == (130, STOPPED)
        assert "KeyboardInterrupt" in started_in(tmp_path / "store" / "logs" / "local").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_what_was_printed_is_there(start):
    """The end of a log would be lost with the buffer that it stood in."""
    process = start("lacuna.jobs.plan", f"print('half a line', end=''); {KILL}", "plan", "tiny.yaml")
    assert process.communicate(timeout=120) == (b"half a line", STOPPED)


@pytest.mark.parametrize("closed", ["2>&1 | true", ">&- 2>&-"])
def test_nobody_reads_any_more(closed, start):
    """Ctrl-C in `lacuna run | tee log` stops tee as well: what is left to say would be an error of its own."""
    shell = ["bash", "-c", f'("$@"; echo $? > code) {closed}; cat code', "bash"]
    process = start("lacuna.jobs.plan", f"import time; time.sleep(.5); {KILL}", "plan", "tiny.yaml", before=shell)
    assert process.communicate(timeout=120)[0].strip().endswith(b"130")


def test_while_python_ends(start):
    """The last line of a command that had ended would be an error of the interpreter."""
    deed = f"import atexit; atexit.register(lambda: {KILL})"
    assert end(start("lacuna.cli", deed, "plan", "tiny.yaml")) == (130, STOPPED)


def test_where_it_is_ignored(start):
    """A run that a script has in the background would be stopped by a Ctrl-C that was meant for another."""
    code, err = end(start("lacuna.jobs.commands", KILL, "plan", "tiny.yaml", heard="SIG_IGN"))
    assert (code, err) == (0, b"")


def test_the_console_script_begins_there():
    """`lacuna` would begin where Ctrl-C is not looked after yet."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.entry_points"]["console_scripts"].strip() == "lacuna = lacuna.__main__:main"
