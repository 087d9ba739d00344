"""Popularity of V rows: which tokens of a text are attended, layer by layer.

Share of the query rows that may see a token whose union of chosen rows has it, the mean over key/value heads, from the
task `kept_rows`; tokens of a window from left to right. A bright left edge are attention sinks; tokens that nobody
attends could be dropped. The right edge is bright by itself: few query rows see the last tokens, and all are near.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..inside import Row, bar, by_layer, heading, heat, rectangle, sparse
from ..study import Study
from ..style import panels, paper

MOST_METHODS = 12


def draw(study: Study) -> Figure:
    """One panel per model, setting and sparse method.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = sparse(study, "kept_rows", "layer", "popularity")
    several = len(found["where"].unique()) > 1
    with paper():
        figure, pairs = panels(found.to_dict("records"), 3, 2.3, 1.7, MOST_METHODS)
        images = [_panel(axis, row, row["where"] if several else "") for axis, row in pairs]
        figure.supxlabel("token of the window", fontsize=8)
        figure.supylabel("layer", fontsize=8)
        bar(figure, images[0], [axis for axis, _ in pairs], "share of rows that attend it")
    return figure


def _panel(axis: Axes, row: Row, where: str) -> AxesImage:
    layers, popular = by_layer(row, "popularity")
    window = row["task_args"].get("window", len(popular[0]))
    image = heat(axis, rectangle(popular), vmin=0, vmax=1, extent=(0, window, max(layers) + 0.5, -0.5))
    axis.set_title(heading(where, row["method_label"]), fontsize=6.5)
    return image
