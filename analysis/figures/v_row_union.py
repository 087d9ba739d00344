"""V rows by layer: the rows that a head attends, and the union over a group's query heads that must be read for them.

Shares of the rows that there are, from the task `kept_rows`. The line is the union, mean over key/value heads, with
bars from the least to the most of them; the short stroke below it is the mean of the sets that make it. Where the two
lie far apart, query heads of a group choose different rows, and sharing a key/value head saves little.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inside import by_layer, layer_axis, sparse, stroked, wheres
from ..study import Study
from ..style import COLUMN, sheet


def draw(study: Study) -> Figure:
    """One panel per model and setting.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = sparse(study, "kept_rows", "layer", "union", "kept_share")
    return sheet(wheres(found), 2, COLUMN, 2.4, _panel)


def _panel(axis: Axes, group: pd.DataFrame) -> None:
    for row, stroke in stroked(axis, group):
        layers, unions = by_layer(row, "union")
        _, kept = by_layer(row, "kept_share")
        means = [float(np.mean(u)) for u in unions]
        ends = [[m - min(u), max(u) - m] for m, u in zip(means, unions, strict=True)]
        axis.errorbar(layers, means, yerr=np.clip(np.array(ends).T, 0, None), elinewidth=0.6, **stroke)
        axis.plot(layers, kept, linestyle="none", marker="_", markersize=7, color=stroke["color"])
    axis.set(ylim=(0, None), ylabel="share of the rows\n(line: union, stroke: a set)")
    layer_axis(axis, str(group["where"].iloc[0]))
