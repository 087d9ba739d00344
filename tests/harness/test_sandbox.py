"""Model-written code can neither leave the sandbox, nor see the machine, nor outlive its time."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from lacuna.harness.sandbox import run as sandbox
from lacuna.harness.sandbox.run import Limits, SandboxError, run_inside, run_unsafe

LIMITS = Limits(seconds=3, memory_mib=256, processes=8, scratch_mib=4)
MOUNT = """
import ctypes, os
if ctypes.CDLL(None, use_errno=True).mount(b"none", b"/scratch", b"tmpfs", 0, None):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""
DEAF = """
import signal
for number in range(1, 31):
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
while True:
    pass
"""
pytestmark = pytest.mark.skipif(bool(sandbox.missing()), reason=sandbox.missing() or "a sandbox is here")


def test_an_honest_program_passes():
    """Right programs that use the standard library would count as wrong."""
    program = "import typing, collections, math, hashlib, re, itertools\nassert math.comb(5, 2) == 10\n"
    assert run_inside(program + "open('a.txt', 'w').write('x'); assert open('a.txt').read() == 'x'", LIMITS).passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "before its tests"),
        ("import os; os._exit(0)", "before its tests"),
        ("x = '''", "SyntaxError"),
    ],
)
def test_what_fails_does_not_pass(program, reason):
    """A program that leaves before its tests would be counted as right."""
    ended = run_inside(program, LIMITS)
    assert not ended.passed
    assert reason in ended.reason


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print(open('/etc/passwd').read())", "No such file"),
        (f"open({str(Path(__file__).resolve())!r})", "No such file"),
        ("open('/proc/1/root/etc/passwd')", "No such file"),
        ("import os; os.chdir('/..'); os.chdir('../../../../..'); open('etc/passwd')", "No such file"),
        ("open('/usr/planted', 'w')", "Read-only file system"),
        ("open('/planted', 'w')", "Read-only file system"),
        ("import os; os.remove(os.__file__)", "Read-only file system"),
        ("import socket; socket.create_connection(('1.1.1.1', 80), 2)", "unreachable"),
        ("import socket; socket.create_connection(('127.0.0.1', 22), 2)", "unreachable"),
        # an ordinary user's program is user 0 of its own namespace from the start, without a privilege
        *([("import os; os.setuid(0)", "not permitted")] if os.geteuid() == 0 else []),
        ("import os; os.chroot('/scratch')", "not permitted"),
        (MOUNT, "not permitted"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))", "File too large|No space"),
    ],
)  # fmt: skip
def test_no_way_out(program, reason):
    """Each of these is something that model-written code has done, by accident or not."""
    import re

    ended = run_inside(program, LIMITS)
    assert not ended.passed
    assert re.search(reason, ended.reason), ended.reason


def test_an_environment_without_secrets():
    """Tokens in the environment are the first thing that leaks."""
    os.environ["LACUNA_TEST_SECRET"] = "hush"
    try:
        program = "import os; assert 'LACUNA_TEST_SECRET' not in os.environ, 'leaked'"
        assert run_inside(program, LIMITS).passed
    finally:
        del os.environ["LACUNA_TEST_SECRET"]


def processes_with(mark):
    """Command lines of this machine that hold a mark."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if mark in line]


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(100)",
        DEAF,
    ],
)
def test_a_program_without_end_is_ended(program):
    """One endless loop would hold up a sweep for good."""
    start = time.monotonic()
    ended = run_inside(program, Limits(seconds=1, memory_mib=256, processes=8))
    assert not ended.passed
    assert "1 s" in ended.reason
    assert time.monotonic() - start < 9


def test_a_fork_bomb_is_counted_and_killed():
    """A machine without free process numbers has to be switched off."""
    bomb = "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: time.sleep(0.01)\n"
    ended = run_inside(bomb, Limits(seconds=1, memory_mib=256, processes=8))
    assert not ended.passed


def test_children_die_with_the_program():
    """A child that was put into the background would go on computing, or wait for the next program."""
    mark = "lacuna-orphan-7351"
    program = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'], start_new_session=True)\n"
    )
    assert run_inside(program, LIMITS).passed
    end = time.monotonic() + 5
    while processes_with(mark) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes_with(mark) == []


def test_noise_does_not_fill_this_process():
    """A program that prints without end would take the memory of the evaluation, not its own."""
    ended = run_inside("import sys\nwhile True: sys.stderr.write('x' * 100000)", Limits(seconds=2, scratch_mib=2))
    assert not ended.passed
    assert len(ended.reason) <= 300


def test_without_a_sandbox_nothing_runs(monkeypatch):
    """A machine that has none must refuse, not run the code as the user."""
    monkeypatch.setattr(sandbox, "_tool", lambda name: "" if name == "unshare" else f"/usr/bin/{name}")
    sandbox.missing.cache_clear()
    try:
        with pytest.raises(SandboxError, match="unshare is not installed"):
            run_inside("pass", LIMITS)
    finally:
        sandbox.missing.cache_clear()


def test_the_unsafe_way_has_a_time_limit_at_least():
    """Who gives up the sandbox still does not want to wait for ever."""
    assert run_unsafe("assert True", LIMITS).passed
    assert not run_unsafe("import sys; sys.exit(0)", LIMITS).passed
    start = time.monotonic()
    assert not run_unsafe("while True: pass", Limits(seconds=1)).passed
    assert time.monotonic() - start < 8
