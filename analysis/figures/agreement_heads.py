"""Agreement of chosen rows with exact top-k, by layer and head: recall and Jaccard index.

From the task `agreement`, for as many rows as the method chose; a set is a query head's rows, or a key/value head's
where the method chooses for its group. The Jaccard index is what Loki's paper reports, recall what its code computes;
recall is never below it. Means over all rows are in the headings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from ..inside import Row, bar, heading, heat, inside, numbers
from ..study import Study
from ..style import panels, paper

MEASURES = {"recall": "recall", "jaccard": "Jaccard index"}
MOST = 12


def draw(study: Study) -> Figure:
    """Two panels per model, setting and method.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = inside(study, "agreement", "layer", "set", *MEASURES)
    several = len(found["where"].unique()) > 1
    groups = [(row, name) for row in found.to_dict("records") for name in MEASURES]
    with paper():
        figure, pairs = panels(groups, 4, 1.75, 1.9, MOST)
        images = [_panel(axis, row, name, row["where"] if several else "") for axis, (row, name) in pairs]
        figure.supxlabel("set of rows (head)", fontsize=8)
        figure.supylabel("layer", fontsize=8)
        bar(figure, images[0], [axis for axis, _ in pairs], "agreement with exact top-k")
    return figure


def _panel(axis: Axes, row: Row, name: str, where: str) -> AxesImage:
    image = heat(axis, _grid(row["samples"], name), vmin=0, vmax=1)
    numbers(axis, image, "{:.2f}")
    mean = row["metrics"].get(name, np.nan)
    axis.set_title(heading(where, row["method_label"], f"{MEASURES[name]} {mean:.3f}", wide=25), fontsize=6.5)
    return image


def _grid(samples: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    shape = (1 + max(s["layer"] for s in samples), 1 + max(s["set"] for s in samples))
    grid = np.full(shape, np.nan)
    for s in samples:
        grid[s["layer"], s["set"]] = s[name]
    return grid
