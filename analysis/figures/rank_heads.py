"""Dimensions of the keys that hold 90% of their variance, by layer and head.

One map per model, corpus and place of the rotary embedding, from the task `spectra` (another share than 90% is in the
heading); all maps have one scale. Heads that need few dimensions are those a low-rank method serves well; one rank for
a whole layer is chosen for the worst of them.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..inside import Row, bar, by_layer, heading, heat, inside, numbers, rectangle
from ..study import Study
from ..style import panels, paper


def draw(study: Study) -> Figure:
    """One panel per calibration.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = inside(study, "spectra", "layer", "rank")
    most = max(r for samples in found["samples"] for s in samples for r in s["rank"])
    with paper():
        figure, pairs = panels(found.to_dict("records"), 3, 2.3, 2.2)
        images = [_panel(axis, row, most) for axis, row in pairs]
        figure.supxlabel("key/value head", fontsize=8)
        figure.supylabel("layer", fontsize=8)
        bar(figure, images[0], [axis for axis, _ in pairs], "dimensions for 90%\nof the keys' variance")
    return figure


def _panel(axis: Axes, row: Row, most: int) -> AxesImage:
    _, ranks = by_layer(row, "rank")
    image = heat(axis, rectangle(ranks), vmin=0, vmax=most)
    numbers(axis, image, "{:.0f}")
    axis.set_title(heading(row["model"], row["asked"]), fontsize=7)
    return image
