"""Attention maps of some layers, with the rows that a method attended marked in them.

Grey: weight of dense attention on a range of tokens (logarithmic; darker is more), from the task `attention_maps`; rows
are query tokens from top to bottom. Orange: ranges of which the method attended rows, the larger the mark the more.
Dark without a mark is what the method leaves out; the heading says how much of the weight it keeps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..headlines import DENSE
from ..inside import Row, bar, heading, heat, inside, rectangle
from ..study import Study
from ..style import panels, paper

MOST = 12
LEAST = 1e-3  # weights below are white
MARK = "#D55E00"


def draw(study: Study) -> Figure:
    """One panel per model, setting, method and layer.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = inside(study, "attention_maps", "layer", "row", "edge", "weight", "kept", "kept_mass")
    several = len(found["where"].unique()) > 1
    groups = [(row, s) for row in found.to_dict("records") for s in row["samples"]]
    across = max(len(row["samples"]) for row in found.to_dict("records"))
    with paper():
        figure, pairs = panels(groups, min(3, across), 2.3, 1.9, MOST)
        images = [_panel(axis, row, sample, row["where"] if several else "") for axis, (row, sample) in pairs]
        figure.supxlabel("token that is attended", fontsize=8)
        figure.supylabel("query token", fontsize=8)
        bar(figure, images[0], [axis for axis, _ in pairs], "weight of dense attention")
    return figure


def _panel(axis: Axes, row: Row, sample: dict[str, Any], where: str) -> AxesImage:
    edges, queries = sample["edge"], sample["row"]
    grid = np.nan_to_num(rectangle(sample["weight"]))
    place = (edges[0], edges[grid.shape[1]], len(queries) - 0.5, -0.5)
    image = heat(axis, np.clip(grid, LEAST, 1), cmap="Greys", norm=LogNorm(LEAST, 1), extent=place)
    if row["method"] != DENSE:
        _mark(axis, sample)
    at = np.linspace(0, len(queries) - 1, min(4, len(queries))).round().astype(int)
    axis.set_yticks(list(at), [str(queries[i]) for i in at])
    kept = "" if row["method"] == DENSE else f" keeps {sample['kept_mass']:.0%}"
    axis.set_title(heading(where, row["method_label"], f"layer {sample['layer']}{kept}"), fontsize=6.5)
    return image


def _mark(axis: Axes, sample: dict[str, Any]) -> None:
    middles = (np.array(sample["edge"][1:]) + np.array(sample["edge"][:-1])) / 2
    kept = np.nan_to_num(rectangle(sample["kept"]))
    rows, columns = np.nonzero(kept)
    axis.scatter(middles[columns], rows, s=3.0 * kept[rows, columns], color=MARK, marker="s", linewidths=0)
