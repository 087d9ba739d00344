"""Memory over the tokens of a text: what the cache holds after the prompt and after each step that was read.

Bytes of all texts, layers and ranks, as the ledger counts them, from the task `decode_time`; a mark for each reading.
The first line is the widest, since all methods that hold every row lie on it. The dotted line is where the prefill
ended: a method that cuts the prompt has done so there. Where a GPU was read, a second panel shows what its allocator
had given out: weights, reserved rows and work space too.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..inside import heading, inside, stroked, wheres
from ..study import Study
from ..style import COLUMN, sheet

KINDS = {"held_bytes": "held by the cache", "allocated_bytes": "allocated on the GPU"}
WIDEST = 2.6  # points that the first line is wider than the last
UNITS = {"GiB": 2.0**30, "MiB": 2.0**20, "KiB": 2.0**10}


class Panel(NamedTuple):
    """What is drawn in one: cells, and which bytes of theirs."""

    rows: pd.DataFrame
    kind: str


def draw(study: Study) -> Figure:
    """One panel per model, setting and kind of bytes.

    Raises:
        ValueError: no cell says what it held.
    """
    found = inside(study, "decode_time", "after", "tokens", "held_bytes")
    groups = wheres(found)
    wanted = [Panel(rows, kind) for rows, kind in itertools.product(groups, KINDS) if _has(rows, kind)]
    return sheet(wanted, 2, COLUMN, 2.4, _panel)


def _has(rows: pd.DataFrame, kind: str) -> bool:
    return any(kind in sample for samples in rows["samples"] for sample in samples)


def _panel(axis: Axes, panel: Panel) -> None:
    curves = [[s for s in samples if panel.kind in s] for samples in panel.rows["samples"]]
    most = max(s[panel.kind] for curve in curves for s in curve)
    unit, size = _unit(most)
    for place, (row, stroke) in enumerate(stroked(axis, panel.rows)):
        curve = [s for s in row["samples"] if panel.kind in s]
        read = [s["tokens"] for s in curve], [s[panel.kind] / size for s in curve]
        wide = 0.8 + WIDEST / (1 + place)  # a line that lies below others of equal bytes is seen beside them
        axis.plot(*read, linewidth=wide, markersize=2 + wide, **stroke)
    for end in sorted({s["tokens"] for curve in curves for s in curve if s["after"] == "prefill"}):
        axis.axvline(end, color="#000000", linestyle=":", linewidth=0.9, label="end of the prefill")
    axis.set(xlabel="tokens of a text", ylabel=f"{unit} {KINDS[panel.kind]}")
    axis.set_ylim(0, 1.08 * most / size or 1)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_title(heading(str(panel.rows["where"].iloc[0])))


def _unit(most: float) -> tuple[str, float]:
    return next(((name, size) for name, size in UNITS.items() if most >= size), ("bytes", 1.0))
