"""One look: the style sheet, and the colour and marker that a method has in every figure."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Group = TypeVar("Group")
COLUMN = 3.4  # inches: one column of a two-column paper
PAGE = 7.0
MOST_PANELS = 6
MOST_LINES = 8  # that a reader tells apart in one panel
MOST_ROWS = 24
DENSE_COLOUR = "#000000"


@dataclass(frozen=True)
class Look:
    """Colour and marker; both differ between methods that are compared often, for print in grey."""

    colour: str
    marker: str


# Okabe and Ito's palette: told apart with any colour vision
LOOKS: Mapping[str, Look] = {
    "full": Look(DENSE_COLOUR, "*"),
    "topk": Look("#0072B2", "o"),
    "loki": Look("#D55E00", "s"),
    "streaming_llm": Look("#009E73", "^"),
    "h2o": Look("#CC79A7", "D"),
    "top_theta": Look("#56B4E9", "v"),
    "landmark": Look("#E69F00", "P"),
    "snapkv": Look("#999999", "X"),
    "pyramidkv": Look("#0072B2", "<"),
    "sparq": Look("#D55E00", ">"),
    "linear": Look("#009E73", "h"),
    "loki_theta": Look("#E69F00", "s"),
}


def look(method: str) -> Look:
    """The look of a method; one that has none of its own gets one by its name, the same on every machine."""
    if method in LOOKS:
        return LOOKS[method]
    colours = sorted({v.colour for v in LOOKS.values()} - {DENSE_COLOUR})
    free = [Look(*pair) for pair in itertools.product(colours, "ospd^v<>DXPh8") if Look(*pair) not in LOOKS.values()]
    return free[int(hashlib.sha256(method.encode()).hexdigest(), 16) % len(free)]


@contextlib.contextmanager
def paper() -> Iterator[None]:
    """Draw and save inside of this: the style sheet holds, and nothing outside is changed."""
    with matplotlib.style.context(Path(__file__).with_name("paper.mplstyle")):
        yield


def fewer(found: pd.DataFrame, column: str = "method_label", most: int = MOST_LINES) -> tuple[pd.DataFrame, str]:
    """The points of at most so many methods (`column="method"`) or budgets, and what to say of the others.

    Every method comes to its turn before one has a second budget; dense, the first of all points, always stays.
    """
    firsts = found.drop_duplicates(column)
    turns = firsts.groupby("method", sort=False).cumcount()
    kept = firsts.assign(turn=turns).sort_values("turn", kind="stable")[column].head(most)
    note = f"{most} of {len(firsts)} methods" if len(firsts) > most else ""
    return found[found[column].isin(kept)], note


def panels(
    groups: Sequence[Group], columns: int, width: float, height: float, most: int = MOST_PANELS, note: str = ""
) -> tuple[Figure, list[tuple[Axes, Group]]]:
    """A figure with a panel of `width` x `height` inches for each group, at most `columns` beside each other.

    The first `most` are drawn, and the figure says so: nobody reads two hundred, or waits for them. `note` is what else
    was left out (see `fewer`).
    """
    drawn = groups[:most]
    across = min(columns, len(drawn))
    down = -(-len(drawn) // across)
    figure = Figure(figsize=(width * across, height * down))
    grid = np.asarray(figure.subplots(down, across, squeeze=False)).ravel()
    for unused in grid[len(drawn) :]:
        unused.remove()
    left = f"{len(drawn)} of {len(groups)} panels" if len(drawn) < len(groups) else ""
    if left or note:
        said = f"{', '.join(text for text in (left, note) if text)}; --where chooses others"
        figure.suptitle(said, fontsize=7, color="#b3261e")
    return figure, list(zip(grid, drawn, strict=False))


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all panels, below them."""
    found = {t: h for axis in axes for h, t in zip(*axis.get_legend_handles_labels(), strict=True)}
    longest = max((len(text) for text in found), default=1)
    fit = int(figure.get_figwidth() / (0.45 + 0.058 * longest))
    columns = max(1, min(len(found), fit))
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.16 * -(-len(found) // columns))  # the panels keep their height
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def whiskers(points: pd.DataFrame) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Lengths below and above each value for `errorbar`; none where there is no interval."""
    below, above = points["value"] - points["low"], points["high"] - points["value"]
    lengths = np.clip(np.array([below, above], dtype=np.float64), 0, None)
    return np.where(np.isfinite(lengths), lengths, 0.0)
