"""A TextTable as markdown, LaTeX, or lines for a terminal; the summary as CSV."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import pandas as pd

from .label import in_order
from .points import points
from .table import TextTable, lay_out, short_cells

WIDTH = 118
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "∞": r"$\infty$",
}


def to_csv(table: pd.DataFrame) -> str:
    """The summary's numbers, unrounded."""
    return table.to_csv(index=False, lineterminator="\n")


def to_markdown(table: TextTable) -> str:
    """A GitHub table, then what its columns and letters mean."""
    rule = ["---"] * table.names + ["---:"] * (len(table.headings) - table.names)
    lines = ["| " + " | ".join(map(_escape_pipe, row)) + " |" for row in (table.headings, rule, *table.rows)]
    return "\n\n".join(["\n".join(lines), table.about, *table.notes]) + "\n"


def to_latex(table: TextTable) -> str:
    """A booktabs tabular (needs the package booktabs), then its notes as comments to copy from."""
    columns = "l" * table.names + "r" * (len(table.headings) - table.names)
    head, *rows = [" & ".join(map(escape_latex, row)) + r" \\" for row in (table.headings, *table.rows)]
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*body, *(f"% {' '.join(note.split())}" for note in (table.about, *table.notes))]) + "\n"


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(c, c) for c in " ".join(text.split()))


def terminal_table(frame: pd.DataFrame) -> str:
    """The table of records for a terminal of 118 columns.

    Raises:
        ValueError: there are no records, or none of a task with a headline.
    """
    return terminal_tables(points(frame), "method")


def terminal_tables(found: pd.DataFrame, by: str) -> str:
    """Points as one table (`by="method"`), or a table for each task, model or setting."""
    if by == "method":
        return aligned(lay_out(found, short_cells))
    column = "task_label" if by == "task" else by
    groups = [(str(rows[column].iloc[0]), rows) for rows in in_order(found, [column])]
    return "\n".join(f"{by} {name}\n\n{aligned(lay_out(rows, short_cells))}" for name, rows in groups)


def aligned(table: TextTable) -> str:
    """Columns of a terminal; tasks that do not fit beside each other go below."""
    blocks = ["\n".join(_aligned(table, columns)) for columns in _folds(table)]
    notes = [line for note in (table.about, *table.notes) for line in textwrap.wrap(note, WIDTH)]
    return "\n\n".join([*blocks, "\n".join(notes)]) + "\n"


def _escape_pipe(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _widths(table: TextTable) -> list[int]:
    return [max(map(len, column)) for column in zip(table.headings, *table.rows, strict=True)]


def _folds(table: TextTable) -> Iterator[list[int]]:
    # a task's two columns stay together, and so do density and bytes
    widths, names = _widths(table), list(range(table.names))
    chosen = list(names)
    for first in range(table.names, len(widths), 2):
        pair = [place for place in (first, first + 1) if place < len(widths)]
        if len(chosen) > len(names) and sum(widths[i] + 2 for i in chosen + pair) - 2 > WIDTH:
            yield chosen
            chosen = list(names)
        chosen = chosen + pair
    yield chosen


def _aligned(table: TextTable, columns: Sequence[int]) -> list[str]:
    widths = _widths(table)
    lines = [[row[i] for i in columns] for row in (table.headings, *table.rows)]
    lines.insert(1, ["─" * widths[i] for i in columns])
    sides = ["<" if i < table.names else ">" for i in columns]
    pairs = [zip(line, sides, columns, strict=True) for line in lines]
    return ["  ".join(f"{text:{side}{widths[i]}}" for text, side, i in pair).rstrip() for pair in pairs]
