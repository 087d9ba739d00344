"""Agreement of chosen rows with exact top-k, layer by layer: recall and Jaccard index.

Mean over the heads of a layer, from the task `agreement`; bars reach from the head that agrees least to the one that
agrees most. Left: recall; right: the Jaccard index, which is what Loki's paper reports.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inside import inside, layer_axis, stroked, wheres
from ..study import Study
from ..style import COLUMN, sheet

MEASURES = {"recall": "recall", "jaccard": "Jaccard index"}


def draw(study: Study) -> Figure:
    """Two panels per model and setting.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = inside(study, "agreement", "layer", "set", *MEASURES)
    groups = [(rows, name) for rows in wheres(found) for name in MEASURES]
    return sheet(groups, 2, COLUMN, 2.4, lambda axis, pair: _panel(axis, *pair))


def _panel(axis: Axes, rows: pd.DataFrame, name: str) -> None:
    for row, stroke in stroked(axis, rows):
        heads = _heads(row["samples"], name)
        means = {layer: float(np.mean(values)) for layer, values in heads.items()}
        ends = [[means[i] - min(values), max(values) - means[i]] for i, values in heads.items()]
        bars = np.clip(np.array(ends).T, 0, None)
        axis.errorbar(list(means), list(means.values()), yerr=bars, elinewidth=0.6, **stroke)
    axis.set(ylim=(0, 1.03), ylabel=MEASURES[name])
    layer_axis(axis, str(rows["where"].iloc[0]))


def _heads(samples: list[dict[str, Any]], name: str) -> dict[int, list[float]]:
    found = defaultdict[int, list[float]](list)
    for sample in sorted(samples, key=lambda s: (s["layer"], s["set"])):
        found[sample["layer"]].append(sample[name])
    return found
