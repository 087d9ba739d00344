"""`lacuna` and `python -m lacuna`: Ctrl-C ends in one line and code 130, at whatever moment it comes."""

import os
import sys
from types import FrameType
from typing import NoReturn

STOPPED = "stopped; what was finished is kept, the same command goes on from there"


def main() -> int:
    """Entry point of the console script; exit codes are those of `cli.main`, and 130 where it was stopped.

    Before this Python itself starts, for some 20 ms, and knows nothing of us.
    """
    try:
        # imports take longest of all that most commands do: few stand above this line
        from signal import SIGINT, default_int_handler, getsignal, signal  # noqa: PLC0415

        # else who started us wants it ignored, as a script does in the background
        heard = getsignal(SIGINT) is default_int_handler
        if heard:
            signal(SIGINT, _stop)
        from .cli import main as answer  # noqa: PLC0415

        code = answer()
        if heard:
            signal(SIGINT, _end)  # Python takes a while to end, too
    except KeyboardInterrupt:
        _end()
    return code


def _stop(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            _end()  # compiled modules end the process with a page of their own where their import is interrupted
        frame = frame.f_back
    raise KeyboardInterrupt


def _end(*_: object) -> NoReturn:
    try:
        if "multiprocessing" in sys.modules:
            for child in sys.modules["multiprocessing"].active_children():
                child.terminate()  # workers of a pool leave Ctrl-C to us
        for stream in (sys.stdout, sys.stderr):
            try:  # noqa: SIM105 - nothing is imported any more
                stream.flush()  # what was printed into a pipe or a file is still with us
            except (AttributeError, OSError, ValueError, RuntimeError):
                pass  # closed, or nobody reads it any more, or it was being written when we were stopped
        os.write(2, f"{STOPPED}\n".encode())
    finally:
        os._exit(130)  # all of ours is put away by now, and libraries that end may wait for each other


if __name__ == "__main__":
    sys.exit(main())
