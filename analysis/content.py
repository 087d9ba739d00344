"""Everything of a report that is text or numbers: sentences, warnings, tables, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ..results.plugins import load
from . import equal_bytes, failures, kernel_table, survey
from .grids import lay_out as grid_table
from .provenance import notices, origins
from .render import to_csv, to_latex, to_markdown
from .sources import Sources
from .table import TextTable, lay_out, long_cells, wide
from .words import sentences


@dataclass(frozen=True)
class Content:
    """What is said.

    Attributes:
        said: the summary.
        warned: what a reader must know before comparing.
        tables: by the name of their files; the first is the table of methods and tasks.
        titles: of each table, as a heading of the page.
        files: contents by name.
        origins: (what, its values).
    """

    said: Sequence[str]
    warned: Sequence[str]
    tables: Mapping[str, TextTable]
    titles: Mapping[str, str]
    files: Mapping[str, str]
    origins: Sequence[tuple[str, str]]


TITLES = {
    "table": "Table",
    "speed": "Speed of operations",
    "equal_bytes": "At equal bytes",
    "overview": "All records",
}


def tabled(sources: Sources, paper: str = "") -> Content:
    """All of it, and the tables of a paper (`lacuna list papers`).

    Raises:
        ValueError: there are no records and no times.
    """
    tables, files = dict[str, TextTable](), dict[str, str]()
    said, warned = list[str](), list[str]()
    if len(sources.archive.lean) or not len(sources.bench):
        said, warned = _of_records(sources, tables, files)
    if len(sources.bench):
        tables["speed"] = kernel_table.lay_out(sources.bench)
        files["speed.csv"] = to_csv(kernel_table.numbers(sources.bench))
        said += kernel_table.sentences(sources.bench)
    grids = load("papers", paper).TABLES if paper else {}
    found = sources.study.points if len(sources.archive.lean) else pd.DataFrame(columns=["task"])
    tables |= {name: grid_table(grid, found) for name, grid in grids.items()}
    titles = {**{name: grid.title.split(" (")[0].rstrip(".") for name, grid in grids.items()}, **TITLES}
    for name, table in tables.items():
        files |= {f"{name}.md": to_markdown(table), f"{name}.tex": to_latex(table)}
    places = [*origins(sources.archive), *kernel_table.origins(sources.bench)]
    return Content(said, warned, {n: tables[n] for n in titles if n in tables}, titles, files, places)


def _of_records(sources: Sources, tables: dict[str, TextTable], files: dict[str, str]) -> tuple[list[str], list[str]]:
    study, archive = sources.study, sources.archive
    found = study.points
    pairs = equal_bytes.compare(study.cells)
    tables["table"] = lay_out(found, long_cells)
    files |= {"table.csv": to_csv(wide(found)), "equal_bytes.csv": to_csv(pairs), **failures.files(archive)}
    if len(pairs):
        tables["equal_bytes"] = equal_bytes.lay_out(pairs)
    cut = survey.shown(archive, len(study.frame))
    if cut:
        means = survey.overview(archive)
        files["overview.csv"] = to_csv(means)
        tables["overview"] = survey.lay_out(means, archive)
    return [*sentences(archive.lean, found), *filter(None, [cut])], notices(archive, study.cells, found)
