"""Figures as files, drawn in this process or in several: the bytes are the same.

Half of a large report's time is matplotlib's. Workers are started afresh (`spawn`): a copy of a process in which Arrow
and BLAS have threads may stand still. They read the study once, with its cells and points computed already.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from warnings import catch_warnings, filterwarnings

from matplotlib import rc_context
from matplotlib.figure import Figure

from ..results.plugins import describe, load
from .sources import Sources
from .study import Study
from .style import paper as style

# the files are equal for equal records: no time of making, no random ids
FORMATS: dict[str, dict[str, Any]] = {
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    "png": {"metadata": {"Software": None}, "dpi": 200},
    "svg": {"metadata": {"Date": None, "Creator": None}},
}
MANY = 1000  # records from which drawing takes longer than to start processes
MOST = 4  # processes; a login node has other users
# of widths and heights, tried in turn
ROOM = ((1.0, 1.0), (1.0, 1.25), (1.0, 1.5), (1.0, 2.0), (1.3, 1.0), (1.3, 1.5), (1.7, 1.5), (2.2, 2.0))


# No engine at all: for "none", which is one that does nothing, matplotlib draws a figure twice to save it once; and it
# chooses the style's engine anew each time that it puts back a None.
LAID_OUT: dict[Any, Any] = {"figure.constrained_layout.use": False}


@dataclass(frozen=True)
class Drawing:
    """A figure: its file's docstring is title and caption; `missing` says why there is none.

    Attributes:
        images: contents by kind (pdf, png, svg).
    """

    name: str
    doc: str
    images: dict[str, bytes]
    missing: str

    @property
    def title(self) -> str:
        """The docstring's first line."""
        return self.doc.split("\n", 1)[0]

    @property
    def caption(self) -> str:
        """The rest of the docstring."""
        return " ".join(self.doc.split("\n")[1:]).strip()

    @property
    def files(self) -> dict[str, bytes]:
        """`figures/NAME.KIND` and contents."""
        return {f"figures/{self.name}.{kind}": data for kind, data in self.images.items()}


def processes(sources: Sources) -> int:
    """In how many processes the figures of a report are drawn soonest."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, cores) if len(sources.archive.lean) >= MANY else 1


@contextmanager
def begun(study: Study, wanted: Sequence[str], workers: int) -> Iterator[Callable[[], list[Drawing]]]:
    """Every wanted figure, in this order, when the value is called; one that the records lack something for says what.

    Args:
        study: the records.
        wanted: names of figures.
        workers: processes that draw while the caller does other work; 1: this one, when called. With more, a script
            that calls this guards its main module (`if __name__ == "__main__"`), which workers import.

    Raises:
        ChildProcessError: a worker was killed.
    """
    if workers == 1:
        yield lambda: [draw(study, name) for name in wanted]
        return
    with TemporaryDirectory() as folder, _pool(workers) as pool:
        for _ in range(workers):
            pool.submit(_ready)  # they import matplotlib while the study is computed here
        study.compute()
        place = Path(folder) / "study.pickle"
        place.write_bytes(pickle.dumps(study, pickle.HIGHEST_PROTOCOL))
        coming = pool.map(partial(_drawn, place), wanted)
        yield lambda: list(coming)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that begin no other figure once the caller has failed, so that what was wrong is told at once."""
    deaf = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to answer
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), deaf)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ChildProcessError("a process that drew figures was killed; is there too little memory?") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _ready() -> None:
    """What a worker does first: it is there, with this module and what that imports."""


@cache
def _taken(place: Path) -> Study:
    study: Study = pickle.loads(place.read_bytes())  # noqa: S301 - this report wrote it, in a folder of its own
    return study


def _drawn(place: Path, name: str) -> Drawing:
    return draw(_taken(place), name)


def draw(study: Study, name: str) -> Drawing:
    """One figure in every format."""
    doc = describe("figures", name).doc
    try:
        figure = load("figures", name).draw(study)
        with style():
            _lay_out(figure)
    except ValueError as error:  # a figure says so when the records lack what it shows
        return Drawing(name, doc, {}, str(error))
    with style(), rc_context(LAID_OUT):
        return Drawing(name, doc, {kind: _saved(figure, kind) for kind in FORMATS}, "")


def _lay_out(figure: Figure) -> None:
    """Lay out once, not again for each format; larger where titles and labels leave the panels no room.

    Raises:
        ValueError: there is none in a figure of twice its size either.
    """
    width, height = figure.get_size_inches()
    if engine := figure.get_layout_engine():
        with catch_warnings():
            filterwarnings("error", "constrained_layout not applied")
            for wider, higher in ROOM:
                figure.set_size_inches(width * wider, height * higher)
                with suppress(UserWarning):
                    engine.execute(figure)
                    break
            else:
                raise ValueError("its titles and labels leave no room for its panels: choose fewer with --where")
    with rc_context(LAID_OUT):
        figure.set_layout_engine(None)


def _saved(figure: Figure, kind: str) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, **FORMATS[kind])
    return data.getvalue()
