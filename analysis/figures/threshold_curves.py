"""Calibrated thresholds over the length of a row, head by head.

From the task `threshold_curves`: one panel per calibration and layer, one line per head, dark to bright by its number.
Lines that lie apart are why each head has thresholds of its own; lines that bend are why they depend on the row's
length.
"""

from __future__ import annotations

import itertools
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inside import Row, heading, inside
from ..study import Study
from ..style import panels, paper

UNITS = {
    "pre": "threshold of the score",
    "post": "threshold of the weight",
    "lowrank": "threshold of the\nlow-rank score",
}
LINES = ("-", "--", "-.", ":")
MOST_NAMED = 12


def draw(study: Study) -> Figure:
    """One panel per model, calibration and layer.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = inside(study, "threshold_curves", "layer", "signal", "length", "threshold")
    several = len(found["where"].unique()) > 1
    groups = [(row, s) for row in found.to_dict("records") for s in row["samples"]]
    with paper():
        figure, pairs = panels(groups, 3, 2.3, 2.0)
        for axis, (row, sample) in pairs:
            _panel(axis, row if several else {**row, "where": row["model"]}, sample)
        _name(figure, pairs[0][0])
    return figure


def _panel(axis: Axes, row: Row, sample: dict[str, Any]) -> None:
    lines = sample["threshold"]
    for head, (line, values) in enumerate(zip(itertools.cycle(LINES), lines, strict=False)):
        colour = colormaps["viridis"](0.9 * head / max(1, len(lines) - 1))
        axis.plot(sample["length"], values, color=colour, linestyle=line, label=f"head {head}")
    axis.set(xlabel="length of the row (tokens)", ylabel=UNITS[sample["signal"]])
    axis.set_title(heading(row["where"], f"layer {sample['layer']}"), fontsize=7)


def _name(figure: Figure, axis: Axes) -> None:
    handles, names = axis.get_legend_handles_labels()
    if len(names) <= MOST_NAMED:
        figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)))
