"""A folder that can be shown: one page, the figures as files, the table in three formats."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..results.plugins import load, names
from ..results.store import MARK, write_atomically
from .content import tabled
from .drawings import begun, draw
from .page import Page
from .paper import paper_files
from .sources import Sources, of_frame


def write_report(frame: pd.DataFrame, folder: Path, title: str, command: str) -> list[Path]:
    """`write_sources` of records in memory, from `results.frame.to_frame` or `read`."""
    return write_sources(of_frame(frame), folder, title, command)


def write_sources(
    sources: Sources, folder: Path, title: str, command: str, paper: str = "", workers: int = 1
) -> list[Path]:
    """Write `index.html`, tables, `figures/*.{pdf,png,svg}` and `paper/`; returns the paths, the page first.

    Args:
        sources: records and times of operations.
        folder: made if it is not there; files of the same names are replaced.
        title: the page's heading.
        command: how to make the report again, shown as it is.
        paper: of which the tables are shown, and the figures alone (`lacuna list papers`); empty: all figures.
        workers: processes that draw figures (see `drawings.begun`).

    Raises:
        ValueError: there are no records and no times, or the folder is a file or a store.
    """
    _refuse(folder)
    with begun(sources.study, _wanted(paper), workers) as drawings:
        content = tabled(sources, paper)
        found = drawings()
    contents = {name: text.encode() for name, text in content.files.items()}
    contents |= {name: data for drawing in found for name, data in drawing.files.items()}
    contents |= paper_files(found, content.tables)
    page = Page(title, command, content, found, sources.archive)
    return [_write(folder / n, data) for n, data in {"index.html": page.html().encode(), **contents}.items()]


def _refuse(folder: Path) -> None:
    """Before minutes of drawing."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, a report is a folder: give another one")
    if (folder / MARK).exists():
        raise ValueError(f"{folder} is a store of records, in which a report would be lost: give another folder")


def drawn(sources: Sources) -> dict[str, bytes]:
    """Every figure that can be drawn, by `figures/NAME.KIND`."""
    found = (draw(sources.study, name) for name in names("figures"))
    return {name: data for drawing in found for name, data in drawing.files.items()}


def _write(path: Path, data: bytes) -> Path:
    write_atomically(path, data)
    return path


def _wanted(paper: str) -> list[str]:
    return list(load("papers", paper).FIGURES) if paper else names("figures")
