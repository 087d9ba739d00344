"""One process at a cell: a lock that ends with whoever holds it, however that is."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

# EACCES and EAGAIN: another has it; ESTALE: who had it has just removed the file, on another host
HELD = (errno.EACCES, errno.EAGAIN, errno.ESTALE)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Claim:
    """What came of asking for a lock.

    Attributes:
        holder: who else has it; empty: it is ours.
        sure: whether the file system has locks; where it has none, it is everybody's.
    """

    holder: str = ""
    sure: bool = True


def me() -> str:
    """What a file says whose lock this process holds, or held last."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def claimed(path: Path) -> Iterator[Claim]:
    """Hold a file's lock while this is entered, if nobody else does, and write into the file who we are.

    The kernel lets go of it when the process ends, by whatever signal. It is `flock` and not `lockf`, which a process
    loses when it closes the file anywhere.

    Raises:
        OSError: the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+", encoding="utf-8") as file:
            claim = _asked(file)
            if claim.holder or not claim.sure or _is_at(path, file):
                yield claim
                return


def _asked(file: TextIO) -> Claim:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (*HELD, *NO_LOCKS):
            raise
        file.seek(0)
        held = error.errno in HELD
        return Claim((file.read().strip() or "another process") if held else "", sure=held)
    file.truncate(0)
    file.write(f"{me()}\n")
    file.flush()
    return Claim()


def _is_at(path: Path, file: TextIO) -> bool:
    """Whether the file is still there: who held it may have removed it between our opening and our locking it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
