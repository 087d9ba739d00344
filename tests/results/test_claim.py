"""One process at a cell at a time, and nobody once it is gone."""

import errno
import fcntl
import os
import socket
import subprocess
import sys

import pytest

from lacuna.results.claim import claimed

HOLD = """
import sys, time
from pathlib import Path
from lacuna.results.claim import claimed
with claimed(Path(sys.argv[1])) as claim:
    print(claim.holder, flush=True)
    time.sleep(300)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "aa" / "aabb.claim"


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout.readline() == "\n"
        yield process
        process.kill()


def test_what_another_process_holds_is_told_with_its_name(path, holder):
    """Two processes would compute one cell, and their lines be mixed in one file."""
    with claimed(path) as claim:
        assert claim.holder.startswith(f"process {holder.pid} on ")
        assert claim.sure
    with claimed(path) as claim:  # asking did not take it away
        assert claim.holder


def test_what_a_killed_process_held_is_free(path, holder):
    """After kill -9 a cell would wait for somebody who is no more."""
    holder.kill()
    holder.wait()
    for _ in range(2):  # and is free again after it was held
        with claimed(path) as claim:
            assert claim.holder == ""
            assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_that_was_removed_meanwhile_is_no_claim(path, monkeypatch):
    """Two would have a lock each, on two files of one name."""
    lock, times = fcntl.flock, []

    def flock(file, how):
        times.append(file.name)
        if len(times) == 1:  # who had it ends the cell, and removes the file
            path.unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(path) as claim, claimed(path) as second:
        assert claim.holder == ""
        assert second.holder == f"process {os.getpid()} on {socket.gethostname()}"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(path, monkeypatch, number):
    """On such a file system nothing could be run at all, or double work be promised away."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(path) as claim:
        assert (claim.holder, claim.sure) == ("", False)


def test_another_error_is_no_claim(path, monkeypatch):
    """A broken disk would be taken for another process that is at every cell."""

    def flock(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"), claimed(path):
        pass
