"""What the command line prints as it works, and what it means when nobody can read it."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

PIPE_CLOSED = 141  # 128 + SIGPIPE: what a shell tells of a program that wrote to a reader who had gone


class UnheardError(BaseException):
    """What was said could not be written. It ends the command, not the cell that was being run: that has not failed.

    Attributes:
        code: the exit code.
    """

    def __init__(self, error: OSError) -> None:
        closed = error.errno == errno.EPIPE
        super().__init__("" if closed else f"the output cannot be written: {error.strerror}")
        self.code = PIPE_CLOSED if closed else 1


def say(line: str) -> None:
    """Print at once, also into a pipe.

    Raises:
        UnheardError: the reader has gone (`lacuna list methods | head`), or the disk is full.
    """
    try:
        print(line, flush=True)
    except OSError as error:
        raise _unheard(error) from error


def flush() -> None:
    """Write what others printed, argparse's help for one; raises as `say` does."""
    if sys.stdout is None:  # it was closed before the command began, who does so wants to hear nothing
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        raise _unheard(error) from error


def _unheard(error: OSError) -> UnheardError:
    # Python writes what is left when it ends, and would complain once more
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UnheardError(error)


def hush(line: str) -> None:
    """Say nothing."""
    del line


def say_row(values: dict[str, Any]) -> dict[str, Any]:
    """Print a verification or a timing as one line, and hand it on."""
    brief = {
        k: f"{v:.4g}" if isinstance(v, float) else v for k, v in values.items() if isinstance(v, (str, int, float))
    }
    say("  ".join(f"{name}={value}" for name, value in brief.items() if value != ""))
    return values
