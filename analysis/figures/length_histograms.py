"""Lengths of prompts and completions, right answers and wrong ones apart.

Tokens of each sample that has `prompt_tokens`, `completion_tokens` and a score; a sample is right at a score of at
least one half. Hatched: wrong. If wrong answers are the long ones, a method or a limit of new tokens cuts them off;
the heading has their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..headlines import DENSE
from ..inside import heading
from ..study import Study
from ..style import legend, panels, paper, turns

NEEDED = {"prompt_tokens", "completion_tokens", "score"}
KINDS = {"prompt": "prompt", "completion": "completion", "total": "prompt + completion"}
RIGHT = 0.5
MOST_ROWS = 6
KEYS = ["model_label", "setting", "task_label", "turn", "order", "method_label"]


def draw(study: Study) -> Figure:
    """Three panels per model, setting, task and method.

    Raises:
        ValueError: no cell that ended well has samples with both lengths and a score.
    """
    good = study.cells[study.cells["status"] == "ok"]
    good = good.assign(falling=-good["density"], order=(good["method"] != DENSE).astype(int))
    good = good.assign(turn=turns(good, "falling"))
    rows = [row for cell in good.to_dict("records") for row in _rows(cell)]
    if not rows:
        raise ValueError("needs a cell that ended well whose samples have prompt_tokens, completion_tokens and score")
    groups = [g for _, g in pd.DataFrame(rows).groupby(KEYS, sort=True)]
    with paper():
        figure, pairs = panels([(g, kind) for g in groups for kind in KINDS], 3, 2.3, 1.6, 3 * MOST_ROWS)
        for axis, (group, kind) in pairs:
            _panel(axis, group, kind)
        legend(figure, [axis for axis, _ in pairs])
    return figure


def _rows(cell: Mapping[Any, Any]) -> list[dict[str, Any]]:
    names = {name: cell[name] for name in KEYS}
    return [
        {
            **names,
            "prompt": s["prompt_tokens"],
            "completion": s["completion_tokens"],
            "total": s["prompt_tokens"] + s["completion_tokens"],
            "right": s["score"] >= RIGHT,
        }
        for s in cell["samples"]
        if s.keys() >= NEEDED
    ]


def _panel(axis: Axes, group: pd.DataFrame, kind: str) -> None:
    right, wrong = group.loc[group["right"], kind], group.loc[~group["right"], kind]
    shape: dict[str, Any] = {"bins": _edges(group[kind]), "linewidth": 0.6}
    axis.hist(right, **shape, color="#56B4E9", edgecolor="#0072B2", label="right")
    axis.hist(wrong, **shape, color="none", edgecolor="#D55E00", hatch="////", label="wrong")
    axis.set(xlabel=f"{KINDS[kind]} (tokens)", ylabel="samples")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    first = group.iloc[0]
    if kind == "prompt":
        where = " ".join(t for t in (first["model_label"], first["setting"]) if t)
        axis.set_title(heading(where, f"{first['task_label']}, {first['method_label']}"), fontsize=6.5)
    elif kind == "completion":
        axis.set_title(f"{len(right)} right, {len(wrong)} wrong", fontsize=6.5)


def _edges(lengths: pd.Series[Any]) -> list[float]:
    """Ranges of as many whole tokens each, at most 20, fewer for few samples."""
    low, high = int(lengths.min()), int(lengths.max())
    most = min(20, max(4, int(np.sqrt(len(lengths)))))
    width = -(-(high - low + 1) // most)
    return [edge - 0.5 for edge in range(low, high + width + 1, width)]
