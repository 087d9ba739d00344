"""One look: the style sheet, and the colour and marker that a method has in every figure."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from ..results.plugins import names
from .label import in_order

Group = TypeVar("Group")
COLUMN = 3.4  # inches: one column of a two-column paper
PAGE = 7.0
MOST_PANELS = 6
MOST_LINES = 8  # that a reader tells apart in one panel
MOST_ROWS = 24
MOST_DEALT = 9  # panels of one figure, where methods are dealt to several
DENSE_COLOUR = "#000000"
HANDLE = 0.45  # inches of a legend's stroke with its margins


@dataclass(frozen=True)
class Look:
    """Colour and marker; both differ between methods that are compared often, for print in grey."""

    colour: str
    marker: str


# Okabe and Ito's palette
BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, GREY, VIOLET = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999", "#8A2BE2"
)  # fmt: skip
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = "os^DvP"
# Methods that share a marker have colours that are far apart with any colour vision; kin differ in both.
LOOKS: Mapping[str, Look] = {
    "full": Look(DENSE_COLOUR, "*"),
    "topk": Look(BLUE, "o"),
    "tova": Look(ORANGE, "o"),
    "ntk": Look(GREY, "o"),
    "loki": Look(VERMILION, "s"),
    "keydiff": Look(SKY, "s"),
    "l2norm": Look(GREY, "s"),
    "streaming_llm": Look(GREEN, "^"),
    "adakv": Look(ORANGE, "^"),
    "h2o": Look(PURPLE, "D"),
    "ratchetkv": Look(SKY, "X"),
    "top_theta": Look(SKY, "v"),
    "quest": Look(ORANGE, "v"),
    "landmark": Look(ORANGE, "P"),
    "loki_theta": Look(VIOLET, "P"),
    "snapkv": Look(GREY, "X"),
    "pca_attn": Look(ORANGE, "X"),
    "pyramidkv": Look(BLUE, "<"),
    "evict_then_select": Look(ORANGE, "<"),
    "sparq": Look(SKY, ">"),
    "linear_residual": Look(VERMILION, ">"),
}
SPARE = (Look(GREY, "v"), Look(GREY, "P"), Look(VERMILION, "D"), Look(GREY, "<"), Look(GREY, ">"))


def look(method: str) -> Look:
    """The look of a method; one that has none of its own gets a spare one, the same on every machine."""
    return LOOKS.get(method) or _spared().get(method) or SPARE[_place(method)]


@functools.cache
def _spared() -> Mapping[str, Look]:
    """Spare looks of the methods that this version has: each another one, as long as there are some."""
    taken: dict[str, Look] = {}
    for method in (name for name in names("methods") if name not in LOOKS):
        turns = [SPARE[(_place(method) + i) % len(SPARE)] for i in range(len(SPARE))]
        taken[method] = next((mine for mine in turns if mine not in taken.values()), turns[0])
    return taken


def _place(method: str) -> int:
    return int(hashlib.sha256(method.encode()).hexdigest(), 16) % len(SPARE)


def nth(place: int) -> Look:
    """The look of what is no method (a corpus, an operation): by its place in a figure."""
    turn = place // len(PALETTE)  # colours come again with other markers
    return Look(PALETTE[place % len(PALETTE)], MARKERS[(place + turn) % len(MARKERS)])


def filled(colour: str, density: float) -> tuple[float, float, float, float]:
    """The inside of a mark: budgets of one method share colour and marker, the emptier the smaller the density."""
    return (*to_rgb(colour), 1.0 if math.isnan(density) else min(1.0, 1.5 * density))


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


def turns(found: pd.DataFrame, by: str) -> pd.Series:
    """Which budget of its method, in the order of `by`, a row is of: methods take turns where not all are shown."""
    ordered = found.sort_values([by, "method_label"]).drop_duplicates("method_label")
    return found["method_label"].map(
        dict(zip(ordered["method_label"], ordered.groupby("method").cumcount(), strict=True))
    )


def dealt(found: pd.DataFrame, by: Sequence[str], line: str = "method") -> tuple[list[pd.DataFrame], str]:
    """Points as panels: those of equal `by`, and what to say of methods that are not there.

    Of more lines, one for each `line`, than a reader tells apart in one panel, a few at a time have panels of their
    own, beside dense, those of one colour apart, where there is room for all; else the first alone are shown (see
    `fewer`).
    """
    sparse = ~found["is_dense"].astype(bool)
    lines, whole = found.loc[sparse, line].unique(), len(found[list(by)].drop_duplicates())
    times = -(-len(lines) // (MOST_LINES - 1))
    kept, note = (found, "") if times * whole <= MOST_DEALT else fewer(found, line)
    hands = _hands(found[sparse], line, times) if kept is found else [set(lines)]
    groups = in_order(kept, by)
    several = [g[g["is_dense"].astype(bool) | g[line].isin(hand)] for hand in hands for g in groups]
    return [g for g in several if not g["is_dense"].all()] or groups, note


def _hands(found: pd.DataFrame, line: str, count: int) -> list[set[str]]:
    """The lines, dealt like cards: those of one colour to different hands, as long as there are some."""
    firsts = found.drop_duplicates(line)
    colours = firsts["method"].map(lambda method: look(str(method)).colour)
    ordered = firsts.assign(colour=colours).sort_values(["colour", line], kind="stable")[line]
    return [set(ordered[place::count]) for place in range(count)]


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


def sheet(
    groups: Sequence[Group],
    columns: int,
    width: float,
    height: float,
    panel: Callable[[Axes, Group], None],
    note: str = "",
) -> Figure:
    """`panels` of the groups, each drawn by `panel`, with one legend for all."""
    with paper():
        figure, pairs = panels(groups, columns, width, height, note=note)
        for axis, group in pairs:
            panel(axis, group)
        legend(figure, [axis for axis, _ in pairs])
    return figure


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all panels, below them: as few rows as fit into the width; a name longer than that is wrapped."""
    found = {t: h for axis in axes for h, t in zip(*axis.get_legend_handles_labels(), strict=True)}
    width, height = figure.get_size_inches()
    texts = [_wrapped(text, width - HANDLE) for text in found]
    inches = [_inches(text) for text in texts]  # measured once: a glyph's outline takes long in Python
    columns = next((c for c in range(len(texts), 1, -1) if _wide(inches, c) <= width), 1)
    rows = max((sum(text.count("\n") + 1 for text in c) for c in _columns(texts, columns)), default=0)
    figure.set_size_inches(width, height + 0.16 * rows)  # the panels keep their height
    figure.legend(found.values(), texts, loc="outside lower center", ncols=columns)


def _wrapped(text: str, width: float) -> str:
    inches = _inches(text)
    return text if inches <= width else textwrap.fill(text, int(0.95 * len(text) * width / inches))


def _inches(text: str) -> float:
    """The width of the longest line."""
    font = FontProperties(size=matplotlib.rcParams["legend.fontsize"])
    lines = [TextPath((0, 0), line, prop=font) for line in text.split("\n") if line.strip()]
    return max((float(line.get_extents().width) / 72 for line in lines), default=0.0)


def _columns(texts: Sequence[str], count: int) -> Iterator[Sequence[str]]:
    # as matplotlib deals them out: the first columns have one more where they do not come out even
    return (list(map(str, column)) for column in np.array_split(np.array(texts), count))


def _wide(inches: Sequence[float], count: int) -> float:
    return sum(HANDLE + float(column.max()) for column in np.array_split(np.array(inches), count))


def whiskers(points: pd.DataFrame) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Lengths below and above each value for `errorbar`; none where there is no interval."""
    below, above = points["value"] - points["low"], points["high"] - points["value"]
    lengths = np.clip(np.array([below, above], dtype=np.float64), 0, None)
    return np.where(np.isfinite(lengths), lengths, 0.0)
