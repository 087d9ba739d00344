"""Quality against measured speed-up, and the front: marks that no other one beats in both.

A mark joins a method's score with its median decode time at the longest context that was timed, on the same model,
dtype, device and ranks; both are measured, by the same code path. Bars are 95% intervals. Marks on the front are
filled and joined by a step; the dotted line is full's speed: left of it a method is slower than dense.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..label import in_order, title
from ..study import Study
from ..style import fewer, look, sheet, whiskers

BY = ["model", "setting", "method_label"]


def draw(study: Study) -> Figure:
    """One panel per model, setting and task with a score.

    Raises:
        ValueError: no method has both a score and a speed-up.
    """
    found = _joined(study.points)
    if found.empty or found["is_dense"].all():
        raise ValueError("needs a cell of a task with a score and one of decode_time that ended well, of one method")
    found, note = fewer(found, "method")
    groups = in_order(found, ["model", "setting", "task_label"])
    return sheet(groups, min(3, len(found["task_label"].unique())), 2.5, 2.2, _panel, note)


def on_front(speed: NDArray[np.float64], quality: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which marks no other one reaches in one and beats in the other; more is better in both."""
    pairs = list(zip(speed, quality, strict=True))
    return np.array([not any(a >= s and b >= q and (a, b) != (s, q) for a, b in pairs) for s, q in pairs], dtype=bool)


def _joined(found: pd.DataFrame) -> pd.DataFrame:
    times = found[found["is_time"].astype(bool) & found["value"].notna()]
    prompts = pd.Series([args.get("prompt", 0) for args in times["task_args"]], index=times.index, dtype=float)
    longest = times.assign(prompt=prompts).sort_values("prompt", kind="stable").drop_duplicates(BY, keep="last")
    longest = longest.assign(speed=longest["change"].where(~_is_base(longest), 1.0))
    longest = longest.rename(columns={"change_low": "speed_low", "change_high": "speed_high"})
    scores = found[~found["is_time"].astype(bool) & np.isfinite(found["value"])]
    both = scores.merge(longest[[*BY, "speed", "speed_low", "speed_high", "prompt"]], on=BY)
    known: pd.DataFrame = both[both["speed"].notna()]
    return known


def _is_base(found: pd.DataFrame) -> pd.Series[bool]:
    return found["is_dense"].astype(bool) & found["change"].isna()


def _panel(axis: Axes, group: pd.DataFrame) -> None:
    first = group.iloc[0]
    sign = 1.0 if first["better"] == "higher" else -1.0
    front = on_front(group["speed"].to_numpy(dtype=float), sign * group["value"].to_numpy(dtype=float))
    for (method, best), marks in group.assign(best=front).groupby(["method", "best"], sort=True):
        _marks(axis, str(method), marks, "full" if best else "none")
    edge = group[front].sort_values("speed")
    # the steps go through what is reached: never better than a mark
    axis.step(edge["speed"], edge["value"], where="pre", color="#777777", linewidth=0.8, zorder=0, label="front")
    axis.axvline(1.0, color=look("full").colour, linestyle=":", linewidth=0.8, zorder=0)
    context = f"\nat {first['prompt']:g} tokens" if first["prompt"] else ""
    axis.set(xlabel=f"speed-up over full{context}", ylabel=f"{first['heading']}\n({first['better']} is better)")
    axis.set_title(title(group))


def _marks(axis: Axes, method: str, marks: pd.DataFrame, fill: str) -> None:
    mine = look(method)
    speed = marks[["speed", "speed_low", "speed_high"]].set_axis(["value", "low", "high"], axis=1)
    axis.errorbar(
        marks["speed"].astype(float),
        marks["value"].astype(float),
        xerr=whiskers(speed.astype(float)),
        yerr=whiskers(marks[["value", "low", "high"]].astype(float)),
        color=mine.colour,
        marker=mine.marker,
        fillstyle="full" if fill == "full" else "none",
        elinewidth=0.7,
        linestyle="none",
        label=method,
    )
