"""What analyses saw inside of a model: their cells with labels and samples, and the strokes and maps they are drawn by.

An analysis is a task whose samples are of layers and heads, not of questions: it need not have a headline, and its
cells are no points.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from .headlines import DENSE
from .label import in_order, tell_apart
from .study import Study
from .style import look

SETTING = ("dtype", "device", "ranks", "prefill", "query_aware", "seed")
WIDE = 34  # letters of a narrow panel's title
MOST_NUMBERS = 10  # rows or columns of a map that still leave room for numbers
DARK = 0.6  # below this share of its scale viridis is too dark for black letters
MOST_LINES = 16
LINES = ("-", "--", ":", "-.")
TEXTS = ("corpus", "heldout", "haystack")  # arguments that may be files, which folder they lie in says nothing
Row = Mapping[Any, Any]


def inside(study: Study, task: str, *fields: str) -> pd.DataFrame:
    """The cells of an analysis that ended well, each key once, with the samples that have these fields.

    Columns: `model` (with its setting), `asked` (which arguments of the task differ), `where` (both, a panel's
    heading), `method`, `method_label` (unique in a `where`), `task_args`, `samples`, `metrics`; full first, then by
    method and falling density.

    Raises:
        ValueError: there is none.
    """
    frame = study.frame
    good = frame[(frame["task"] == task) & (frame["status"] == "ok")].drop_duplicates("key", keep="last")
    rows = [{**row, "samples": _with(row["samples_json"], fields)} for row in good.to_dict("records")]
    rows = [row for row in rows if row["samples"]]
    if not rows:
        raise ValueError(f"needs a cell of the task {task} that ended well")
    specs = [json.loads(row["cell_json"]) for row in rows]
    found = pd.DataFrame(
        {
            "model": tell_apart([row["model"] for row in rows], [_setting(s) for s in specs]),
            "order": [row["method"] != DENSE for row in rows],
            "method": [row["method"] for row in rows],
            "falling": [-row["density"] if pd.notna(row["density"]) else -1.0 for row in rows],
            "method_label": tell_apart([row["method_label"] for row in rows], [s["method"]["args"] for s in specs]),
            "task_args": [s["task"]["args"] for s in specs],
            "samples": [row["samples"] for row in rows],
            "metrics": rows,
        }
    )
    found["asked"] = asked(found)
    found["where"] = (found["model"] + " " + found["asked"]).str.strip()
    return found.sort_values(["where", "order", "method", "falling", "method_label"]).reset_index(drop=True)


def sparse(study: Study, task: str, *fields: str) -> pd.DataFrame:
    """The same without full.

    Raises:
        ValueError: there is none.
    """
    found = inside(study, task, *fields)
    found = found[found["method"] != DENSE]
    if found.empty:
        raise ValueError(f"needs a cell of the task {task} that ended well, of a sparse method")
    return found


def wheres(found: pd.DataFrame) -> list[pd.DataFrame]:
    """A table for each panel's heading."""
    return in_order(found, ["where"])


def _with(samples_json: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    return [s for s in json.loads(samples_json) if set(fields) <= s.keys()]


def _setting(spec: Mapping[str, Any]) -> dict[str, Any]:
    model = {k: v for k, v in spec["model"].items() if k not in ("name", "source")}
    version = {"version": spec["task"]["version"]}
    return {"model": model, **{name: spec[name] for name in SETTING}, "task": version}


def asked(found: pd.DataFrame, *without: str) -> list[str]:
    """What tells each cell's task from the others: its arguments that differ, but these (`pca.corpus`)."""
    return tell_apart([""] * len(found), [_asked(args, without) for args in found["task_args"]])


def _asked(args: Mapping[str, Any], without: Sequence[str], prefix: str = "") -> dict[str, Any]:
    kept = {k: v for k, v in args.items() if prefix + k not in without}
    inner = {k: _asked(v, without, f"{prefix}{k}.") for k, v in kept.items() if isinstance(v, Mapping)}
    plain = {k: v for k, v in kept.items() if k not in inner}
    named = {name: _of_files(kept[name]) for name in TEXTS if name in kept}
    # the arguments of a single calibration need no name before them
    return {**plain, **named, **({"args": next(iter(inner.values()))} if len(inner) == 1 else inner)}


def corpus_of(args: Mapping[str, Any]) -> str:
    """The name of a corpus; of a file, its own name without the folders."""
    return _of_files(args.get("corpus", ""))


def _of_files(value: Any) -> str:
    """A file without its folders, or several."""
    return ", ".join(Path(str(one)).name for one in (value if isinstance(value, list | tuple) else [value]))


def heading(*parts: str, wide: int = WIDE) -> str:
    """Lines of a panel's title, no wider than so many letters."""
    return "\n".join(line for part in parts for line in textwrap.wrap(part, wide))


def plain_ticks(axis: Axes, which: str) -> None:
    """A logarithmic axis (x or y) with doublings as plain numbers."""
    line = axis.xaxis if which == "x" else axis.yaxis
    axis.set(**{f"{which}scale": "log"})
    line.set_major_locator(LogLocator(base=2, numticks=7))
    line.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else f"{value:.2g}"))
    line.set_minor_locator(NullLocator())


def stroked(axis: Axes, rows: pd.DataFrame) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Each cell with how its line is drawn: colour and marker are its method's, its budgets differ in line and fill.

    The first so many, and the panel says so: nobody tells fifty lines apart.
    """
    places: dict[str, int] = {}
    if len(rows) > MOST_LINES:
        said = f"{MOST_LINES} of {len(rows)} methods; --where chooses others"
        axis.text(0.01, 0.99, said, transform=axis.transAxes, fontsize=6, color="#b3261e", va="top")
    for row in rows.head(MOST_LINES).to_dict("records"):
        mine, place = look(row["method"]), places.get(row["method"], 0)
        places[row["method"]] = place + 1
        line = {"color": mine.colour, "marker": mine.marker, "linestyle": LINES[place % len(LINES)]}
        yield row, {**line, "markerfacecolor": "white" if place else mine.colour, "label": row["method_label"]}


def by_layer(row: Row, name: str) -> tuple[list[int], list[Any]]:
    """Layers, and a field of their samples."""
    samples = sorted(row["samples"], key=lambda s: s["layer"])
    return [int(s["layer"]) for s in samples], [s[name] for s in samples]


def layer_axis(axis: Axes, heading: str) -> None:
    """Layers are whole numbers."""
    axis.set_xlabel("layer")
    axis.set_title(heading)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def heat(axis: Axes, grid: NDArray[np.float64], **options: Any) -> AxesImage:
    """A map of numbers; what is missing is hatched."""
    axis.set_facecolor("#dddddd")
    axis.patch.set(hatch="////", edgecolor="#aaaaaa")
    shown = {"cmap": "viridis", "aspect": "auto", "interpolation": "none", **options}
    image = axis.imshow(np.ma.masked_invalid(grid), **shown)
    axis.grid(visible=False)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return image


def numbers(axis: Axes, image: AxesImage, form: str) -> None:
    """The numbers of a map in its fields, where they can be read."""
    shown = image.get_array()
    assert shown is not None
    grid = np.ma.filled(shown.astype(float), np.nan)
    if max(grid.shape) > MOST_NUMBERS:
        return
    for row, column in np.argwhere(np.isfinite(grid)):
        text, colour = form.format(grid[row, column]), ink(image, grid[row, column])
        axis.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)


def ink(image: AxesImage, value: float) -> str:
    """The colour of letters that can be read on this value's own."""
    low, high = (float(v) for v in image.get_clim())
    return "white" if value - low < DARK * (high - low) or high == low else "black"


def rectangle(lists: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Lists below each other, filled up with NaN."""
    grid = np.full((len(lists), max(map(len, lists))), np.nan)
    for row, values in zip(grid, lists, strict=True):
        row[: len(values)] = values
    return grid


def bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], label: str) -> None:
    """One scale for all panels, beside them."""
    figure.colorbar(image, ax=list(axes), label=label, shrink=0.8, aspect=30)
