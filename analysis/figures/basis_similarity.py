"""Principal components across corpora: is a basis from one as good for another one's keys?

Rows: the corpus that a basis was calibrated on; columns: the corpus whose keys it is used on; means over layers and
heads from the task `basis_similarity`. Above: the overlap of the leading components (1 is the same space; the heading
says what unrelated spaces would have). Below: the variance of the keys that the basis holds, over what as many of their
own components hold. On the diagonal both are 1.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inside import asked, corpus_of, heading, heat, inside, numbers
from ..study import Study
from ..style import panels, paper

MEASURES = ("overlap", "variance_held")


def draw(study: Study) -> Figure:
    """Two panels per model and setting of the calibrations.

    Raises:
        ValueError: no cell of the task ended well.
    """
    found = inside(study, "basis_similarity", "overlap", "variance_held")
    found["mine"] = [corpus_of(args["pca"]) for args in found["task_args"]]
    found["other"] = [corpus_of(args["other"]) for args in found["task_args"]]
    found["rest"] = _rest(found)
    groups = [rows for _, rows in found.groupby(["model", "rest"], sort=True)]
    pairs_of = [(rows, name) for name in MEASURES for rows in groups[:3]]
    with paper():
        figure, pairs = panels(pairs_of, min(3, len(groups)), 2.3, 2.1)
        for axis, (rows, name) in pairs:
            _panel(axis, rows, name)
        figure.supxlabel("keys of", fontsize=8)
        figure.supylabel("basis from", fontsize=8)
    return figure


def _rest(found: pd.DataFrame) -> list[str]:
    """What else differs; what both calibrations of a pair have in common is said once."""
    pairs = [({**a["pca"], "corpus": ""}, {**a["other"], "corpus": ""}) for a in found["task_args"]]
    if any(mine != other for mine, other in pairs):
        return asked(found, "pca.corpus", "other.corpus")
    return asked(found, "pca.corpus", "other")


def _panel(axis: Axes, rows: pd.DataFrame, name: str) -> None:
    means = [np.mean([v for s in samples for v in s[name]]) for samples in rows["samples"]]
    grid = rows.assign(value=means).pivot_table(index="mine", columns="other", values="value")
    image = heat(axis, grid.to_numpy(dtype=float), vmin=0, vmax=1)
    numbers(axis, image, "{:.2f}")
    axis.set_xticks(range(len(grid.columns)), list(grid.columns), fontsize=6.5)
    axis.set_yticks(range(len(grid.index)), list(grid.index), fontsize=6.5)
    chance = rows["metrics"].iloc[0].get("overlap_by_chance")
    words = f"overlap (by chance {chance:.2f})" if name == "overlap" else "variance held"
    axis.set_title(heading(f"{words}, {rows['model'].iloc[0]}", rows["rest"].iloc[0]), fontsize=7)
