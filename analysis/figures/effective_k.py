"""Effective k: rows that a method really attends, over the row's length.

Mean over layers, heads and query rows, from the task `kept_rows`; the band reaches from the head with the fewest rows
to the one with the most, in any layer. Both axes are logarithmic: a share runs along the grey line of all rows, a count
is flat. Thin dashes: what the method's budget asks for, where it is one in rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inside import plain_ticks, sparse, stroked, wheres
from ..study import Study
from ..style import COLUMN, sheet


def draw(study: Study) -> Figure:
    """One panel per model and setting.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = sparse(study, "kept_rows", "length", "kept", "least", "most")
    return sheet(wheres(found), 2, COLUMN, 2.4, _panel)


def _panel(axis: Axes, group: pd.DataFrame) -> None:
    shortest, longest = np.inf, 0.0
    for row, stroke in stroked(axis, group):
        parts = {name: np.array([s[name] for s in row["samples"]]) for name in ("length", "kept", "least", "most")}
        length = parts["length"].mean(0)
        shortest, longest = min(shortest, float(length.min())), max(longest, float(length.max()))
        axis.plot(length, parts["kept"].mean(0), **{**stroke, "markersize": 3})
        least, most = parts["least"].min(0), parts["most"].max(0)
        axis.fill_between(length, np.maximum(least, 1), most, color=stroke["color"], alpha=0.1, linewidth=0)
        _ask(axis, length, row["samples"], stroke["color"])
    axis.plot([shortest, longest], [shortest, longest], color="#888888", linewidth=0.8, label="all rows")
    axis.set(xlabel="length of the row (tokens it may see)", ylabel="rows attended")
    plain_ticks(axis, "x")
    plain_ticks(axis, "y")
    axis.set_title(str(group["where"].iloc[0]))


def _ask(axis: Axes, length: Any, samples: list[dict[str, Any]], colour: str) -> None:
    asked = [s["asked"] for s in samples if "asked" in s]
    if asked:
        axis.plot(length, np.mean(asked, axis=0), color=colour, linewidth=0.6, linestyle=(0, (2, 2)))
