"""What a command says when nobody can read it, by its exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ARCHIVE = Path(__file__).parent.parent / "results" / "archive" / "2026-11-20-demo-laptop.csv"
SWEEP = "model: pocket\nmethod: full\ntask: {perplexity: {window: 64, windows: 1}}\n"
COMMANDS = {
    "help": ("--help",),
    "list": ("list", "methods"),
    "plan": ("plan", "tiny.yaml"),
    "status": ("status", "tiny.yaml"),
    "why": ("why", "tiny.yaml"),
    "submit": ("submit", "tiny.yaml", "--site", "slurm_cpu", "--dry-run"),
    "diff": ("diff", ARCHIVE, ARCHIVE),
    "table": ("table", ARCHIVE),
    "doctor": ("doctor",),
}


def ended(argv, stdout, folder):
    """Exit code and errors of a command in a process of its own, as a shell starts it: with a buffered output."""
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "LACUNA_STORE")}
    command = [sys.executable, "-m", "lacuna", *map(str, argv)]
    done = subprocess.run(command, cwd=folder, env=given, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SWEEP, encoding="utf-8")
    return tmp_path


@pytest.fixture
def closed_pipe():
    """The end to write to of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_who_has_gone_is_told_by_the_exit_code(folder, closed_pipe, name):
    """`lacuna diff A B | head -0` would say that nothing got worse, and `plan | head` would end in a traceback."""
    assert ended(COMMANDS[name], closed_pipe, folder) == (141, "")


def test_a_command_may_be_told_to_say_nothing(folder):
    """`lacuna run SWEEP >&-` in a script of a batch system would end in a traceback."""
    command = [sys.executable, "-m", "lacuna", "plan", "tiny.yaml"]
    silent = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], cwd=folder, capture_output=True, check=False)
    assert (silent.returncode, silent.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("name", ["help", "list"])
def test_an_output_that_cannot_be_written_is_one_sentence(folder, name):
    """A full disk would look like success, or like an error of nothing in particular."""
    with Path("/dev/full").open("wb") as full:
        assert ended(COMMANDS[name], full, folder) == (1, "the output cannot be written: No space left on device\n")
