"""Dimensions of the keys that hold 90% of their variance, model beside model.

Mean over all layers and heads, with one standard deviation among them, from the task `spectra`; one mark per corpus and
place of the rotary embedding. The line above each model is the dimension of its heads: what full attention reads.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inside import asked, inside
from ..study import Study
from ..style import COLUMN, legend, nth, paper

APART = 0.7  # of the space between two models, for all marks of one


def draw(study: Study) -> Figure:
    """One panel, a column per model.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = inside(study, "spectra", "layer", "rank", "component")
    found["line"] = asked(found)
    models, lines = sorted(found["model"].unique()), sorted(found["line"].unique())
    with paper():
        figure = Figure(figsize=(max(COLUMN, 0.7 * len(models)), 2.4))
        axis = figure.subplots()
        for place, line in enumerate(lines):
            shift = APART * ((place + 0.5) / len(lines) - 0.5)
            _marks(axis, found[found["line"] == line], models, shift, place)
        _sizes(axis, found, models)
        axis.set(xlim=(-0.5, len(models) - 0.5), ylim=(0, None), ylabel="dimensions for 90%\nof the keys' variance")
        axis.set_xticks(range(len(models)), models, rotation=30 if len(models) > 3 else 0)
        legend(figure, [axis])
    return figure


def _marks(axis: Axes, rows: pd.DataFrame, models: list[str], shift: float, place: int) -> None:
    ranks = [[r for s in samples for r in s["rank"]] for samples in rows["samples"]]
    at = [models.index(model) + shift for model in rows["model"]]
    means, deviations = [float(np.mean(r)) for r in ranks], [float(np.std(r)) for r in ranks]
    label = str(rows["line"].iloc[0]) or "keys"
    mine = nth(place)
    axis.errorbar(at, means, yerr=deviations, color=mine.colour, marker=mine.marker, linestyle="none", label=label)


def _sizes(axis: Axes, found: pd.DataFrame, models: list[str]) -> None:
    for place, model in enumerate(models):
        samples = found.loc[found["model"] == model, "samples"].iloc[0]
        size = max(samples[0]["component"])
        label = "dimension of a head" if place == 0 else None
        axis.plot([place - 0.4, place + 0.4], [size, size], color="#888888", linestyle="--", linewidth=0.9, label=label)
