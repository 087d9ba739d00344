"""Needles found by context length and depth: one panel per method.

Share of needles found, by the prompt's length and the needle's depth in it (0 is the beginning). Hatched: no needle
was tried there, because the cell failed or was not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from ..headlines import DENSE
from ..study import Study
from ..style import panels, paper, turns

MOST = 8  # rows or columns that still leave room for numbers
MOST_METHODS = 12
NAMES = ["model", "setting", "asked", "turn", "order", "method", "method_label"]


def draw(study: Study) -> Figure:
    """One panel per model, setting, method and budget.

    Raises:
        ValueError: no cell that ended well has samples with length, depth and score.
    """
    titles = _titles(study.cells)
    if titles.empty:
        raise ValueError("needs a cell of the task needle that ended well")
    groups = [cells for _, cells in titles.groupby(NAMES, sort=True)]
    drawn = [_needles(cells) for cells in groups[:MOST_METHODS]]
    whole = pd.concat(drawn)
    depths = whole["depth"].round(1) if len(whole["depth"].unique()) > MOST else whole["depth"]
    edges = (sorted(whole["length"].unique()), sorted(depths.unique()))
    with paper():
        figure, pairs = panels(groups, 4, 1.75, 1.75, MOST_METHODS)
        images = [_panel(axis, rows, edges) for (axis, _), rows in zip(pairs, drawn, strict=True)]
        figure.supxlabel("prompt's length (tokens)", fontsize=8)
        figure.supylabel("depth of the needle", fontsize=8)
        figure.colorbar(images[0], ax=[axis for axis, _ in pairs], label="accuracy", shrink=0.8, aspect=30)
    return figure


def _titles(cells: pd.DataFrame) -> pd.DataFrame:
    density = cells.groupby(["model_label", "setting", "method_label"])["density"].transform("mean").fillna(1.0)
    good = cells.assign(falling=-density)[cells["status"] == "ok"]
    planted = [bool(s) and {"length", "depth", "score"} <= s[0].keys() for s in good["samples"]]
    good = good[pd.Series(planted, index=good.index, dtype=bool)]
    several = {name: len(good[name].unique()) > 1 for name in ("model_label", "setting", "task_label")}
    return good.assign(
        model=good["model_label"] if several["model_label"] else "",
        setting=good["setting"] if several["setting"] else "",
        asked=good["task_label"] if several["task_label"] else "",
        order=(good["method"] != DENSE).astype(int),
        turn=turns(good, "falling"),
    )


def _needles(cells: pd.DataFrame) -> pd.DataFrame:
    rows = [row for cell in cells.to_dict("records") for row in _rows(cell)]
    return pd.DataFrame(rows, columns=["model", "setting", "asked", "method_label", "length", "depth", "score"])


def _rows(cell: Mapping[Any, Any]) -> list[dict[str, Any]]:
    asked, kept = cell.get("task.length"), [s for s in cell["samples"] if {"length", "depth", "score"} <= s.keys()]
    # the length that was asked for makes a column; prompts differ from it by a few tokens
    column = None if asked is None or pd.isna(asked) else int(asked)
    title = {name: cell[name] for name in ("model", "setting", "asked", "method_label")}
    return [{**title, "length": column or int(s["length"]), "depth": s["depth"], "score": s["score"]} for s in kept]


def _panel(axis: Axes, rows: pd.DataFrame, edges: tuple[list[float], list[float]]) -> AxesImage:
    lengths, depths = edges
    if len(depths) < len(rows["depth"].unique()):
        rows = rows.assign(depth=rows["depth"].round(1))
    share = rows.pivot_table(index="depth", columns="length", values="score", aggfunc="mean")
    grid = share.reindex(index=depths, columns=lengths).to_numpy(dtype=float)
    axis.set_facecolor("#dddddd")
    axis.patch.set(hatch="////", edgecolor="#aaaaaa")
    masked = np.ma.masked_invalid(grid)
    image = axis.imshow(masked, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="none")
    axis.grid(visible=False)
    across, down = range(0, len(lengths), -(-len(lengths) // MOST)), range(0, len(depths), -(-len(depths) // MOST))
    axis.set_xticks(across, [f"{lengths[i]:g}" for i in across], fontsize=6, rotation=90 * (len(lengths) > 5))
    axis.set_yticks(down, [f"{depths[i]:.2g}" for i in down], fontsize=6)
    axis.set_title(_heading(rows.iloc[0]), fontsize=6.5)
    if max(grid.shape) <= MOST:
        _write(axis, grid)
    return image


def _heading(first: pd.Series[Any]) -> str:
    where = " ".join(text for text in (first["model"], first["setting"], first["asked"]) if text)
    return "\n".join(text for text in (where, *first["method_label"].split(" ", 1)) if text)


def _write(axis: Axes, grid: NDArray[np.float64]) -> None:
    for row, column in np.argwhere(~np.isnan(grid)):
        share = grid[row, column]
        colour = "black" if share > 0.6 else "white"
        axis.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=5.5, color=colour)
