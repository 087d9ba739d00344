"""Eigen-spectra of the keys: how much of the variance each principal component holds, layer by layer.

Mean over the heads of a layer, from the task `spectra`; the band reaches from the least to the most of the heads. One
line per corpus and place of the rotary embedding (dashed: before it), in a panel for each of some layers. Where the
lines of two corpora fall together, a basis from one serves the other.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inside import asked, inside, plain_ticks
from ..study import Study
from ..style import MOST_PANELS, PALETTE, sheet

PLACES = {"pre": "--", "post": "-"}


def draw(study: Study) -> Figure:
    """One panel per model and layer, six at most, spread evenly.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = inside(study, "spectra", "layer", "component", "mean", "least", "most")
    found["corpus"] = asked(found, "pca.rotary")
    found["place"] = [args.get("pca", {}).get("rotary", "post") for args in found["task_args"]]
    groups = [(rows, layer) for _, rows in found.groupby("model", sort=True) for layer in _some(rows)]
    return sheet(groups, 3, 2.3, 2.0, lambda axis, pair: _panel(axis, *pair))


def _some(rows: pd.DataFrame) -> list[int]:
    layers = sorted({s["layer"] for samples in rows["samples"] for s in samples})
    at = np.linspace(0, len(layers) - 1, min(len(layers), MOST_PANELS)).round().astype(int)
    return [layers[i] for i in at]


def _panel(axis: Axes, rows: pd.DataFrame, layer: int) -> None:
    colours = dict(zip(sorted(set(rows["corpus"])), PALETTE * 9, strict=False))
    for row in rows.to_dict("records"):
        for s in (s for s in row["samples"] if s["layer"] == layer):
            stroke = {"color": colours[row["corpus"]], "linestyle": PLACES[row["place"]]}
            axis.plot(s["component"], s["mean"], label=row["asked"] or "keys", **stroke)
            axis.fill_between(s["component"], s["least"], s["most"], color=stroke["color"], alpha=0.12, linewidth=0)
    axis.set(yscale="log", xlabel="component", ylabel="share of variance")
    plain_ticks(axis, "x")
    axis.set_title(f"{rows['model'].iloc[0]}, layer {layer}")
