"""A large archive at a glance: which of its cells are shown in full, and the headline of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..results.archive import PARTS, Archive
from .headlines import DENSE, headline
from .numbers import number, plural
from .table import TextTable

MOST = 10_000  # cells of which samples are decoded, intervals computed and figures drawn
ASKED = ("dtype", "device", "ranks", "prefill", "query_aware")
HARD = ("dtype", "device", "ranks")
BY = ["model", *ASKED, "method_label", "task"]


def choose(archive: Archive, most: int = MOST) -> NDArray[np.int64]:
    """Places of the cells that are shown: all, or whole conditions (model, setting and task) until there are `most`.

    Of one condition that alone has more, whole methods are taken, dense first: a method stays beside its baseline.
    Records of another schema are left out, and of records that ask the same question the last is taken.
    """
    places = np.flatnonzero(unique(archive))
    if len(places) <= most:
        return places
    order = _order(archive, places)
    for columns in (["model", *HARD, "task"], ["model", *HARD, "task", "dense", "method"]):
        starts = order.drop_duplicates(columns).index.to_numpy()
        if last := int(starts[starts <= most].max()):
            return np.sort(order["place"].to_numpy()[:last])
    return np.sort(order["place"].to_numpy()[:most])


def unique(archive: Archive) -> NDArray[np.bool_]:
    """Which records are the last to ask their question, and of this schema."""
    asked = pd.DataFrame({**{part: archive.codes[part] for part in PARTS}, **_coded(archive, (*ASKED, "seed"))})
    return np.asarray((archive.codes["task"] >= 0) & ~asked.duplicated(keep="last").to_numpy())


def overview(archive: Archive) -> pd.DataFrame:
    """Every record: per model, setting, method and task the number of cells, and the means of headline and density."""
    lean = archive.lean[list(dict.fromkeys([*BY, "status", "density", *_metrics(archive)]))]
    lean = lean.assign(failed=(lean["status"] != "ok").to_numpy(dtype=bool), cells=1)
    groups = lean.drop(columns="status").groupby(BY, observed=True, sort=True, dropna=False)
    counts = groups[["cells", "failed"]].sum()
    return counts.join(groups[["density", *_metrics(archive)]].mean()).reset_index()


def lay_out(found: pd.DataFrame, archive: Archive) -> TextTable:
    """Method by task, over all models and settings, as text."""
    heads = [head for task in sorted(map(str, found["task"].unique())) if (head := headline(task))]
    rows = []
    dense_first = found.assign(order=(found["method_label"].astype(str) != DENSE).astype(int))
    for (_, label), group in dense_first.groupby(["order", "method_label"], observed=True, sort=True):
        cells = [_mean(group[group["task"] == head.task], head.metric) for head in heads]
        rows.append([str(label), str(int(group["cells"].sum())), str(int(group["failed"].sum())), *cells])
    about = (
        f"All {plural(len(archive.lean), 'record')}: means over models, settings and arguments of a task, weighted by "
        "cells, without intervals. overview.csv has them by model and setting."
    )
    return TextTable(["method", "cells", "failed", *(h.words for h in heads)], rows, 1, about, [])


def shown(archive: Archive, chosen: int) -> str:
    """What a reader must know where not every cell is shown; empty where every one is."""
    possible = int(unique(archive).sum())
    if chosen == possible:
        return ""
    return (
        f"Tables and figures show {chosen:,} of {possible:,} cells, whole conditions in order of model, setting and "
        "task; the section All records has the means of every one, and --where chooses others."
    )


def _order(archive: Archive, places: NDArray[np.int64]) -> pd.DataFrame:
    table = pd.DataFrame({part: archive.codes[part][places] for part in PARTS} | {"place": places})
    for name, column in _coded(archive, HARD).items():
        table[name] = np.asarray(column)[places]
    names = {part: np.array([str(spec and spec["name"]) for spec in archive.specs[part]]) for part in PARTS}
    # the codes in the order of names, so that lengths of one needle stay together
    for part in PARTS:
        rank = np.empty(len(names[part]), dtype=np.int64)
        rank[np.argsort(names[part], kind="stable")] = np.arange(len(names[part]))
        table[part] = rank[table[part]]
    table["dense"] = names["method"][archive.codes["method"][places]] != DENSE
    return table.sort_values(["model", *HARD, "task", "dense", "method"], kind="stable").reset_index(drop=True)


def _coded(archive: Archive, columns: tuple[str, ...]) -> dict[str, Any]:
    return {name: pd.factorize(archive.lean[name], sort=True)[0] for name in columns}


def _metrics(archive: Archive) -> list[str]:
    heads = [headline(str(task)) for task in archive.lean["task"].unique()]
    return sorted({head.metric for head in heads if head and head.metric in archive.lean.columns})


def _mean(rows: pd.DataFrame, metric: str) -> str:
    if metric not in rows or rows[metric].isna().all():
        return "–" if rows.empty else "failed" if rows["failed"].sum() == rows["cells"].sum() else "no number"
    known = rows[rows[metric].notna()]
    return number(float(np.average(known[metric], weights=known["cells"])))
