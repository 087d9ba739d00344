"""What is particular to a job of a local site: the process that starts its ranks, and what is left of both to read."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def started_in(folder: Path) -> Path:
    """The log of the process that starts the ranks of a job, of the last job."""
    return folder / "started.log"


def apart(folder: Path) -> list[str]:
    """What a shell does before it starts the ranks' parent, whose page of Python (at Ctrl-C) is for its own log.

    Submitit numbers the job by the shell, which must stay: with nothing left to do behind it bash becomes the parent.
    """
    return [f"exec 2>{shlex.quote(str(started_in(folder)))}", "trap : EXIT"]


def last_words(logs: Sequence[Path]) -> str:
    """The last line of the first log that has one, and where it stands."""
    for log in logs:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        if lines:
            return f"{lines[-1]}; see {log}"
    return f"it was killed; see {logs[0]}"
