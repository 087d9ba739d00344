"""Runs Python that a model wrote, where it can neither see nor change anything of this machine.

A user, mount, process and network namespace of its own (`unshare` of util-linux): the only files are those of Python
and the system's libraries, read-only, and an empty scratch folder in memory; there is no network, no privilege, no
process but its own. Memory of a process, number of processes, CPU time and size of files are limited, and when the
time is over everything that it started is killed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SETUP = Path(__file__).with_name("inside.sh")
TOOLS = ("unshare", "mount", "umount", "pivot_root", "setpriv", "prlimit", "timeout", "sh")
NOBODY = 65534
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin")
START_S = 10.0  # what making the namespaces may take beside the program


@dataclass(frozen=True)
class Limits:
    """What a program may use: seconds (of time, and of CPU), memory of each process, processes, scratch space."""

    seconds: float = 5.0
    memory_mib: int = 512
    processes: int = 16
    scratch_mib: int = 32


@dataclass(frozen=True)
class Ended:
    """How it ended: `passed` when it came to its end by itself; else `reason`, and what it said last."""

    passed: bool
    reason: str = ""


class SandboxError(ValueError):
    """No sandbox can be had here; the message says what is missing."""


def run_inside(program: str, limits: Limits) -> Ended:
    """Run a program in the sandbox.

    Raises:
        SandboxError: none can be had.
    """
    why = missing()
    if why:
        raise SandboxError(why)
    return _run(program, limits)


@functools.cache
def missing() -> str:
    """What stands against a sandbox on this machine, or nothing; one is tried."""
    lacking = [tool for tool in TOOLS if not _tool(tool)]
    if lacking:
        return f"no sandbox for model-written code: {lacking[0]} is not installed (util-linux or coreutils has it)"
    ended = _run("print('alive')", Limits())
    return "" if ended.passed else f"no sandbox for model-written code can be had here: {ended.reason}"


def run_unsafe(program: str, limits: Limits) -> Ended:
    """Run a program as this user, with this user's files and network, in a process of its own under a time limit."""
    with tempfile.TemporaryDirectory() as scratch:
        limit = [_tool("prlimit"), f"--as={limits.memory_mib << 20}", f"--fsize={limits.scratch_mib << 20}", "--"]
        command = [*(limit if _tool("prlimit") else []), sys.executable, "-I", "-"]
        return _wait(command, program, limits, Path(scratch), inside=False)


def _run(program: str, limits: Limits) -> Ended:
    with tempfile.TemporaryDirectory(prefix="lacuna-sandbox-") as folder:
        root = Path(folder) / "root"
        root.mkdir()
        command = [_tool("unshare"), "--user", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork"]
        command += ["--kill-child=KILL", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--", "sh", str(SETUP)]
        command += [str(root), str(limits.memory_mib << 20), str(limits.processes), f"{limits.seconds:.3f}"]
        command += [str(limits.scratch_mib), str(NOBODY if os.geteuid() == 0 else 0), _python(), *_folders()]
        return _wait(command, program, limits, Path(folder), inside=True)


def _wait(command: Sequence[str], program: str, limits: Limits, folder: Path, *, inside: bool) -> Ended:
    token = secrets.token_hex(16)  # said at the very end: a program that exits before its tests has not passed them
    text = program.encode("utf-8", "surrogatepass") + f"\nimport sys\nsys.stderr.write('\\n{token}\\n')\n".encode()
    with (folder / "said").open("w+b") as said:  # a file, whose size is limited: this process does not gather it
        process = subprocess.Popen(  # noqa: S603 - what it runs is why it is here
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            cwd=folder,
            env={"PATH": _path(), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            if inside:
                _map_users(process)
                text = b"go\n" + text
            process.communicate(text, limits.seconds + inside * START_S)
        except subprocess.TimeoutExpired:
            return Ended(passed=False, reason=f"took longer than {limits.seconds:g} s")
        finally:
            _kill(process)
        said.seek(max(0, said.tell() - 4096))
        lines = said.read().decode(errors="replace").strip().splitlines() or [""]
    if process.returncode == 0 and lines[-1] == token:
        return Ended(passed=True)
    return Ended(passed=False, reason=_reason(process.returncode, lines[-1], limits))


def _reason(code: int, last: str, limits: Limits) -> str:
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL, 128 + signal.SIGXCPU):
        return f"was killed at a limit, such as {limits.seconds:g} s"
    return (last or f"ended with code {code} before its tests")[:300]


def _map_users(process: subprocess.Popen[bytes]) -> None:
    """Root maps itself, to build the new root, and nobody, who then runs the program: limits do not bind root."""
    if os.geteuid() != 0:
        return
    own, theirs = Path("/proc/self/ns/user"), Path(f"/proc/{process.pid}/ns/user")
    end = time.monotonic() + START_S
    while process.poll() is None and own.readlink() == theirs.readlink() and time.monotonic() < end:
        time.sleep(0.002)
    if process.poll() is None:
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{kind}").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1\n", encoding="ascii")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The session is killed; with the first process of its namespace all others in it die."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tool(name: str) -> str:
    return shutil.which(name, path=_path()) or ""


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"


def _python() -> str:
    """The interpreter itself, not the link of a virtual environment."""
    return str(Path(sys.executable).resolve())


def _folders() -> list[str]:
    """What the program may read: the system's libraries and Python's own; links stay links."""
    base = str(Path(sys.base_prefix).resolve())
    return [f for f in SYSTEM if Path(f).exists()] + ([] if base.startswith("/usr/") or base == "/usr" else [base])
