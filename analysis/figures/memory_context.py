"""Memory against context: what the cache holds, and the peak that was measured.

Solid: bytes that the method holds for one text of this length at its end: the share of what full would hold, from the
ledger, auxiliary rows included, of so many dense rows; how many texts a task feeds at a time does not count. Dashed:
the peak of the device's allocator over the run, which has the model, all of its texts and the work space in it. Both
in GiB; the emptier a mark, the smaller the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..headlines import DENSE
from ..inside import plain_ticks
from ..study import Study
from ..style import COLUMN, fewer, filled, look, sheet

GIB = 2.0**30
CONTEXT = ("task.prompt", "task.length", "task.window")


def draw(study: Study) -> Figure:
    """One panel per model and setting.

    Raises:
        ValueError: no cell of two contexts says what it holds.
    """
    cells = study.cells
    good = cells[cells["status"] == "ok"].assign(order=lambda c: c["method"] != DENSE)
    found = good.assign(context=_context(good)).assign(held=_held_gib)
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


def _held_gib(cells: pd.DataFrame) -> pd.Series:
    share = pd.to_numeric(cells["bytes_held"]) / pd.to_numeric(cells["bytes_held_dense"])
    return share * cells["context"] * [_row_bytes(ledger.get("decode", {})) for ledger in cells["ledger"]] / GIB


def _row_bytes(decode: Mapping[str, float]) -> float:
    """Of one dense row of a text, all layers: what full reads for a token over the rows that it sees."""
    rows = decode.get("rows_visible_mean", 0.0)
    return decode["bytes_dense_per_token"] / rows if rows else math.nan


def _panel(axis: Axes, rows: pd.DataFrame) -> None:
    for label, marks in rows.groupby("method_label", sort=False):
        mine = look(str(marks["method"].iloc[0]))
        held = marks.groupby("context")["held"].max()
        fill = filled(mine.colour, float(marks["density"].mean()))
        shape: dict[str, Any] = {"color": mine.colour, "marker": mine.marker, "markerfacecolor": fill}
        # dense lies above what holds as much as it
        axis.plot(held.index, held, label=str(label), zorder=3 if marks["method"].iloc[0] == DENSE else 2, **shape)
        if "peak_gib" in marks and marks["peak_gib"].notna().any():
            peak = pd.to_numeric(marks["peak_gib"]).groupby(marks["context"]).max().dropna()
            axis.plot(peak.index, peak, color=mine.colour, linestyle="--", linewidth=0.8)
    axis.set_xscale("log", base=2)
    contexts = sorted(rows["context"].unique())[:: -(-len(rows["context"].unique()) // 8)]
    axis.set_xticks(contexts, [f"{c:g}" for c in contexts])
    axis.minorticks_off()
    plain_ticks(axis, "y")
    axis.set(xlabel="context (tokens)", ylabel="GiB of one text (dashed: peak)")
    first = rows.iloc[0]
    axis.set_title(" ".join(text for text in (first["model_label"], first["setting"]) if text), fontsize=7)
