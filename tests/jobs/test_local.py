"""What a job of a local site is started with, and what is told when it breaks off."""

import shutil
import subprocess
import sys

import pytest

from lacuna.jobs.local import apart, last_words, started_in


@pytest.mark.parametrize("shell", ["sh", "bash", "bash --posix"])
def test_the_shell_stays_above_who_starts_the_ranks(shell, tmp_path):
    """Broken: submitit takes the number of the job from a process that is none of its own, and finds no result."""
    command, *more = shell.split()
    if shutil.which(command) is None:
        pytest.skip(f"no {command} here")
    told = f"{sys.executable} -c 'import os, sys; print(os.getppid()); print(7, file=sys.stderr)'"
    steps = " && ".join([*apart(tmp_path), told])
    with subprocess.Popen([command, *more, "-c", steps], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert (int(out), err) == (process.pid, b"")
    assert started_in(tmp_path).read_text() == "7\n"


def test_the_first_log_that_says_something_is_told(tmp_path):
    """Broken: a job whose ranks never began was killed, whatever its parent said."""
    rank, parent = tmp_path / "rank.err", tmp_path / "parent.err"
    assert last_words([rank, parent]) == f"it was killed; see {rank}"
    parent.write_text("page\nno such file\n")
    assert last_words([rank, parent]) == f"no such file; see {parent}"
    rank.write_text("out of memory\n")
    assert last_words([rank, parent]) == f"out of memory; see {rank}"
