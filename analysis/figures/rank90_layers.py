"""Dimensions of the keys that hold 90% of their variance, per layer: how much a low-rank method could leave out.

Mean over the heads of a layer, from the calibration cells (task `pca`); one line per corpus and per place of the
rotary embedding (pre, post). A number far below the head's dimension is what Loki's approximate scores rest on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..label import tell_apart
from ..study import Study
from ..style import COLUMN, nth, sheet

LAYER = re.compile(r"rank90_layer(\d+)")
ROTARY = {"pre": "--", "post": "-"}


def draw(study: Study) -> Figure:
    """One panel per model.

    Raises:
        ValueError: no calibration that ended well has rank90 of its layers.
    """
    frame = study.frame
    layers = {c: int(m[1]) for c in frame.columns if (m := LAYER.fullmatch(str(c)))}
    good = frame[(frame["status"] == "ok") & frame[list(layers)].notna().any(axis=1)].drop_duplicates("key")
    if not layers or good.empty:
        raise ValueError("needs a cell of the task pca that ended well, with rank90 of each layer")
    specs = [json.loads(text)["task"]["args"] for text in good["cell_json"]]
    settings = [{k: row[k] for k in ("dtype", "ranks")} for row in good.to_dict("records")]
    labels = tell_apart([""] * len(good), [{**a, **s} for a, s in zip(specs, settings, strict=True)])
    rotary = [str(args.get("rotary", "post")) for args in specs]
    good = good.assign(line=[t or "all calibrations" for t in labels], rotary=rotary)
    groups = [g for _, g in good.groupby("model", sort=True)]
    return sheet(groups, 2, COLUMN, 2.2, lambda axis, group: _panel(axis, group, layers))


def _kind(line: str) -> str:
    """A line's name without the place of the rotary embedding, which its stroke tells."""
    return " ".join(word for word in line.split() if not word.startswith("rotary="))


def _panel(axis: Axes, group: pd.DataFrame, layers: Mapping[str, int]) -> None:
    kinds = sorted({_kind(line) for line in group["line"]})
    for row in group.sort_values("line").to_dict("records"):
        found = sorted((layer, row[name]) for name, layer in layers.items() if pd.notna(row[name]))
        mine = nth(kinds.index(_kind(row["line"])))
        fill = "white" if row["rotary"] == "pre" else mine.colour
        shape: dict[str, Any] = {"color": mine.colour, "marker": mine.marker, "markerfacecolor": fill}
        axis.plot(*zip(*found, strict=True), linestyle=ROTARY.get(row["rotary"], ":"), label=row["line"], **shape)
    most = float(group[list(layers)].max().max())
    axis.set(ylim=(0, 1.08 * most), xlabel="layer", ylabel="dimensions for 90%\nof the keys' variance")
    axis.set_title(str(group["model"].iloc[0]))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
