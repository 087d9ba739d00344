"""Memory against context: what the cache holds, and the peak that was measured.

Solid: bytes that the method holds for one text of this length at its end: the share of what full would hold, from the
ledger, auxiliary rows included, of so many dense rows; how many texts a task feeds at a time does not count. Dashed:
the peak of the device's allocator over the run, which has the model, all of its texts and the work space in it. Each
tick has the unit in which it is a whole number; the emptier a mark, the smaller the budget. Dense is drawn wide,
since methods that hold every row lie on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..headlines import DENSE
from ..inside import heading
from ..study import Study
from ..style import COLUMN, fewer, filled, look, sheet

GIB = 2.0**30
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")  # each 1024 of the one before
MOST_TICKS = 8
WIDTHS = {DENSE: (2.2, 6.5)}  # points: of the line and of its marks
CONTEXT = ("task.prompt", "task.length", "task.window")


def draw(study: Study) -> Figure:
    """One panel per model and setting.

    Raises:
        ValueError: no cell of two contexts says what it holds.
    """
    cells = study.cells
    good = cells[cells["status"] == "ok"].assign(order=lambda c: c["method"] != DENSE)
    found = good.assign(context=_context(good)).assign(held=_held)
    found = found[found["context"].notna() & (found["held"] > 0)].sort_values(["order", "method", "method_label"])
    found = found[found.groupby(["model_label", "setting"])["context"].transform("nunique") > 1]
    if found.empty:
        raise ValueError("needs a cell that ended well at two contexts, with bytes held in its ledger")
    found, note = fewer(found)
    groups = [rows for _, rows in found.groupby(["model_label", "setting"], sort=True)]
    return sheet(groups, 2, COLUMN, 2.3, _panel, note)


def _context(cells: pd.DataFrame) -> pd.Series:
    """The longest of what is asked: a perplexity's prompt is a part of its window."""
    known = [pd.to_numeric(cells[name], errors="coerce") for name in CONTEXT if name in cells]
    return pd.concat(known, axis=1).max(axis=1) if known else pd.Series(math.nan, index=cells.index)


def _held(cells: pd.DataFrame) -> pd.Series:
    share = pd.to_numeric(cells["bytes_held"]) / pd.to_numeric(cells["bytes_held_dense"])
    return share * cells["context"] * [_row_bytes(ledger.get("decode", {})) for ledger in cells["ledger"]]


def _row_bytes(decode: Mapping[str, float]) -> float:
    """Of one dense row of a text, all layers: what full reads for a token over the rows that it sees."""
    rows = decode.get("rows_visible_mean", 0.0)
    return decode["bytes_dense_per_token"] / rows if rows else math.nan


def _panel(axis: Axes, rows: pd.DataFrame) -> None:
    for label, marks in rows.groupby("method_label", sort=False):
        method = str(marks["method"].iloc[0])
        mine, (wide, size) = look(method), WIDTHS.get(method, (1.1, 4.5))
        held = marks.groupby("context")["held"].max()
        inner = filled(mine.colour, float(marks["density"].mean()))
        shape: dict[str, Any] = {"color": mine.colour, "marker": mine.marker, "linewidth": wide, "markersize": size}
        # white below the colour: an almost empty mark is not struck through by its own line
        axis.plot(held.index, held, **shape, markerfacecolor="white")
        axis.plot(held.index, held, label=str(label), **shape, markerfacecolor=inner, markeredgecolor=mine.colour)
        peak = _peak(marks)
        axis.plot(peak.index, peak, color=mine.colour, marker="_", linestyle="--", linewidth=0.8)
    axis.set_xscale("log", base=2)
    contexts = sorted(rows["context"].unique())[:: -(-len(rows["context"].unique()) // 8)]
    axis.set_xticks(contexts, [f"{c:g}" for c in contexts])
    axis.minorticks_off()
    _sizes(axis, [rows["held"].min(), rows["held"].max(), *_peak(rows)])
    axis.set(xlabel="context (tokens)", ylabel="held for one text (dashed: peak)")
    first = rows.iloc[0]
    axis.set_title(heading(" ".join(text for text in (first["model_label"], first["setting"]) if text)), fontsize=7)


def _peak(marks: pd.DataFrame) -> pd.Series:
    """The largest of each context, in bytes; none where nothing measured it."""
    if "peak_gib" not in marks:
        return pd.Series(dtype=float)
    most = pd.to_numeric(marks["peak_gib"]).groupby(marks["context"]).max() * GIB
    return most[most > 0]


def _sizes(axis: Axes, values: Sequence[float]) -> None:
    """From the power of two below all bytes to the one above: values within one doubling have two ticks as well."""
    low, high = max(0, math.floor(math.log2(min(values)))), math.ceil(math.log2(max(values)))
    powers = range(low, max(high, low + 1) + 1)
    ticks = powers[:: -(-len(powers) // MOST_TICKS)]
    axis.set_yscale("log", base=2)
    axis.set_yticks([2.0**power for power in ticks], [_told(power) for power in ticks])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(2.0 ** (low - 0.5), 2.0 ** (powers[-1] + 0.5))  # room for a mark on the lowest tick


def _told(power: int) -> str:
    unit = min(power // 10, len(UNITS) - 1)
    return f"{2 ** (power - 10 * unit)} {UNITS[unit]}"
