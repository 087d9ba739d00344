"""Times of a run of `lacuna bench` as Markdown: an operation a line, a shape a column; other shapes stand below.

A cell is the median in milliseconds and the share of the copy bandwidth, measured before in the same process, that the
fewest bytes of the operation in this time are; in brackets the share of a launch among others like it, and behind a
slash what a copy of as many bytes, launch and all, takes of this time, where these were timed. A chain of operations
also has its gain over the fastest dense kernel of the run, and the gain that bytes allow.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import pandas as pd

from .bench import DENSE, SHAPE, decode
from .numbers import number

ALIKE = ("run", "device", "versions", "dtype")  # of all times that stand under one shape
BESIDE = {"percent_in_chain": " ({})", "percent_of_copy": " / {}"}
HEADINGS = ("operation", "shape", "MB", "ms", "% of copy")


def to_markdown(bench: pd.DataFrame) -> str:
    """Both tables.

    Raises:
        ValueError: no dense attention was timed, whose shapes make the columns; or times of several runs, devices or
            dtypes would stand in one column, or two of one operation and shape in one place.
    """
    named = bench.assign(who=bench["op"].where(bench["baseline"].eq(""), bench["baseline"]))
    shapes = list(dict.fromkeys(named.loc[named["op"].eq(DENSE), "case"]))
    if not shapes:
        raise ValueError(f"expected rows of {DENSE}, whose shapes make the columns of the table")
    gains = {(row["op"], row["case"]): row for row in decode(bench).to_dict("records") if not row["baseline"]}
    inside = named[named["case"].isin(shapes)]
    _refuse_mixed(named, inside)
    order = sorted(dict.fromkeys(inside["who"]), key=lambda who: inside["op"][inside["who"].eq(who)].iloc[0] != DENSE)
    lines = [[f"`{who}`", *_cells(inside[inside["who"].eq(who)], shapes, gains)] for who in order]
    outside = [_line(row) for row in named[~named["case"].isin(shapes)].to_dict("records")]
    return _table(["operation", *map(_shape, shapes)], lines) + (
        "\n" + _table(HEADINGS, outside) if outside else ""
    )  # fmt: skip


def _refuse_mixed(named: pd.DataFrame, inside: pd.DataFrame) -> None:
    for name in ALIKE:
        if len(found := sorted(inside[name].unique())) > 1:
            raise ValueError(f"expected times of one {name} in a table, found {', '.join(found)}: give each its own")
    for (who, case), rows in named.groupby(["who", "case"], sort=False):
        if len(rows) > 1:
            ways = {name: sorted(rows[name].unique()) for name in (*ALIKE, "twin")}
            apart = "; ".join(f"{name} {', '.join(values)}" for name, values in ways.items() if len(values) > 1)
            told = f" ({apart})" if apart else ""
            raise ValueError(
                f"{who} at {case} was timed {len(rows)} times{told}, a table has one place: keep one of them"
            )


def _cells(rows: pd.DataFrame, shapes: Iterable[str], gains: Mapping[tuple[str, str], Any]) -> list[str]:
    known = {row["case"]: row for row in rows.to_dict("records")}
    return [_cell(known.get(shape), gains) for shape in shapes]


def _cell(row: Mapping[Hashable, Any] | None, gains: Mapping[tuple[str, str], Any]) -> str:
    if row is None:
        return "–"
    if row["status"] != "ok":
        return str(row["status"])
    said = f"{_ms(row['median_ms'])}, {row['percent_of_ceiling']:.0f}%{_beside(row, '%', 0)}"
    gain = gains.get((row["op"], row["case"]))
    chain = gain is not None and row["op"].endswith("_pipeline") and gain["gain"] == gain["gain"]
    return f"{said}; {gain['gain']:.2f} of {gain['bound']:.2f}" if chain and gain is not None else said


def _line(row: Mapping[Hashable, Any]) -> list[str]:
    if row["status"] != "ok":
        return [f"`{row['who']}`", _shape(row["case"]), "–", str(row["status"]), "–"]
    megabytes = number(row["bytes"] / 1e6, 3)
    return [f"`{row['who']}`", _shape(row["case"]), megabytes, _ms(row["median_ms"]),
            f"{row['percent_of_ceiling']:.1f}{_beside(row, '', 1)}"]  # fmt: skip


def _beside(row: Mapping[Hashable, Any], unit: str, digits: int) -> str:
    told = {name: f"{row[name]:.{digits}f}{unit}" for name in BESIDE if pd.notna(row[name])}
    return "".join(BESIDE[name].format(share) for name, share in told.items())


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.3f}"


def _shape(case: str) -> str:
    """B, H, G, S of a case that is named so; else its name."""
    found = pd.Series([case]).str.extract(f"^{SHAPE}$").iloc[0]
    return case if found.isna().any() else ", ".join(str(found[n]) for n in ("batch", "heads", "groups", "context"))


def _table(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    top = list(headings)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (top, ["---"] * len(top), *lines))
