"""A folder that can be shown: one page, the figures as files, the table in three formats."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ..results.plugins import describe, load, names
from ..results.store import write_atomically
from .content import tabled
from .page import Drawing, Page
from .paper import paper_files
from .sources import Sources, of_frame
from .study import Study
from .style import paper as style

# the files are equal for equal records: no time of making, no random ids
FORMATS: dict[str, dict[str, Any]] = {
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    "png": {"metadata": {"Software": None}, "dpi": 200},
    "svg": {"metadata": {"Date": None, "Creator": None}},
}


def write_report(frame: pd.DataFrame, folder: Path, title: str, command: str) -> list[Path]:
    """`write_sources` of records in memory, from `results.frame.to_frame` or `read`."""
    return write_sources(of_frame(frame), folder, title, command)


def write_sources(sources: Sources, folder: Path, title: str, command: str, paper: str = "") -> list[Path]:
    """Write `index.html`, tables, `figures/*.{pdf,png,svg}` and `paper/`; returns the paths, the page first.

    Args:
        sources: records and times of operations.
        folder: made if it is not there; files of the same names are replaced.
        title: the page's heading.
        command: how to make the report again, shown as it is.
        paper: of which the tables are shown, and the figures alone (`lacuna list papers`); empty: all figures.

    Raises:
        ValueError: there are no records and no times.
    """
    content = tabled(sources, paper)
    contents = {name: text.encode() for name, text in content.files.items()}
    drawings = []
    for drawing, images in _drawings(sources.study, _wanted(paper)):
        drawings.append(drawing)
        contents |= images
    contents |= paper_files(drawings, contents, content.tables)
    page = Page(title, command, content, drawings, sources.archive)
    return [_write(folder / n, data) for n, data in {"index.html": page.html().encode(), **contents}.items()]


def drawn(sources: Sources) -> dict[str, bytes]:
    """Every figure that can be drawn, by `figures/NAME.KIND`."""
    return {name: data for _, images in _drawings(sources.study, names("figures")) for name, data in images.items()}


def _write(path: Path, data: bytes) -> Path:
    write_atomically(path, data)
    return path


def _wanted(paper: str) -> list[str]:
    return list(load("papers", paper).FIGURES) if paper else names("figures")


def _drawings(study: Study, wanted: Sequence[str]) -> Iterator[tuple[Drawing, dict[str, bytes]]]:
    for name in wanted:
        doc = describe("figures", name).doc
        try:
            figure = load("figures", name).draw(study)
        except ValueError as error:  # a figure says so when the records lack what it shows
            yield Drawing(name, doc, b"", str(error)), {}
            continue
        with style():
            if engine := figure.get_layout_engine():
                engine.execute(figure)
            figure.set_layout_engine("none")  # laid out once, not again for each format
            images = {f"figures/{name}.{kind}": _saved(figure, kind) for kind in FORMATS}
        yield Drawing(name, doc, images[f"figures/{name}.svg"], ""), images


def _saved(figure: Figure, kind: str) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, **FORMATS[kind])
    return data.getvalue()
