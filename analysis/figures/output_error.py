"""Error of the attention output by layer, against dense attention on the same queries, keys and values.

Norm of the difference over the norm of the dense output, rows and heads joined, from the task `output_error`. Bars
reach from the smallest to the largest of the windows. A line that rises shows where a method's gaps cost; with
`inputs: method` what the layers before made of the text is in it too. Budgets of one method share colour and marker.
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
    """One panel per model, setting and kind of input.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = inside(study, "output_error", "layer", "error", "by_window")
    return sheet(wheres(found), 2, COLUMN, 2.4, _panel)


def _panel(axis: Axes, group: pd.DataFrame) -> None:
    for row, stroke in stroked(axis, group):
        layers, errors = by_layer(row, "error")
        _, windows = by_layer(row, "by_window")
        ends = [[e - min(w), max(w) - e] for e, w in zip(errors, windows, strict=True)]
        axis.errorbar(layers, errors, yerr=np.clip(np.array(ends).T, 0, None), elinewidth=0.6, **stroke)
    axis.set(ylim=(0, None), ylabel="relative error of the\nattention output")
    layer_axis(axis, str(group["where"].iloc[0]))
