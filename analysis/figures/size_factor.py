"""Size factor by layer: rows that a selection attends over those that exact top-k of its budget would.

From the task `kept_rows`, over query rows longer than the budget. Bars reach from the head with the smallest to the one
with the largest factor. At 1 (dashed) a method keeps what it was asked to; thresholds that were calibrated on another
text, or are rounded up, keep more or less.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inside import by_layer, inside, layer_axis, stroked, wheres
from ..study import Study
from ..style import COLUMN, sheet


def draw(study: Study) -> Figure:
    """One panel per model and setting.

    Raises:
        ValueError: no cell of the task ended well, of a selection with a budget in rows.
    """
    found = inside(study, "kept_rows", "layer", "factors")
    return sheet(wheres(found), 2, COLUMN, 2.4, _panel)


def _panel(axis: Axes, group: pd.DataFrame) -> None:
    axis.axhline(1, color="#888888", linewidth=0.8, linestyle="--", zorder=0)
    for row, stroke in stroked(axis, group):
        layers, factors = by_layer(row, "factors")
        means = [float(np.mean(f)) for f in factors]
        ends = [[m - min(f), max(f) - m] for m, f in zip(means, factors, strict=True)]
        axis.errorbar(layers, means, yerr=np.clip(np.array(ends).T, 0, None), elinewidth=0.6, **stroke)
    axis.set(ylim=(0, None), ylabel="rows attended /\nrows asked for")
    layer_axis(axis, str(group["where"].iloc[0]))
