"""The table in a minute: sentences made from its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from .label import condition
from .numbers import number, plural, signed, times

MOST = 16  # what a person reads in a minute


def sentences(lean: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """How many cells ended well; then, per model and task, what is lost; then what time it takes."""
    good = int((lean["status"] == "ok").sum())
    bad = len(lean) - good
    count = (
        f"{plural(len(lean), 'cell')}: {good} ended well, {bad} did not (listed below)."
        if bad
        else f"All {good} cells ended well."
    )
    several = len(found[["model", "setting"]].drop_duplicates()) > 1
    lines = [count]
    for _, group in found.sort_values("is_time", kind="stable").groupby(["model", "setting", "heading"], sort=False):
        where = f"{condition(group.iloc[0])}, " if several else ""
        lines += [f"{where}{text}" for text in _about(group)]
        if len(lines) > MOST:
            return [*lines[:MOST], "More conditions are in the table below."]
    return lines


def _about(group: pd.DataFrame) -> Iterator[str]:
    dense = group[group["is_dense"].astype(bool) & group["value"].notna() & group["change"].isna()]
    rivals = group[~group["is_dense"].astype(bool) & group["change"].notna()]
    head = group["heading"].iloc[0]
    if dense.empty:
        yield f"{head}: there is no dense result to compare with."
        return
    first = dense.iloc[0]
    start = f"{head}: full has {number(first['value'])} [{number(first['low'])}, {number(first['high'])}]"
    if rivals.empty:
        yield f"{start}; no other method ended well."
    else:
        yield f"{start}; {_time(rivals) if first['is_time'] else _loss(rivals, first['better'])}"


def _time(rivals: pd.DataFrame) -> str:
    change = rivals["change"].to_numpy(dtype=float)
    best, worst = rivals.iloc[int(change.argmax())], rivals.iloc[int(change.argmin())]
    bounds = f"[{times(best['change_low'])}, {times(best['change_high'])}]"
    start = "the fastest is" if best["change"] > 1 else "no method was faster; the nearest is"
    text = f"{start} {best['method_label']} with {times(best['change'])} {bounds}"
    slow = f", the slowest {worst['method_label']} with {times(worst['change'])}"
    unclear = ", which the steps do not tell from 1" if best["change_low"] <= 1 <= best["change_high"] else ""
    return f"{text}{unclear}{slow if len(rivals) > 1 else ''} (below 1 is slower than full)."


def _loss(rivals: pd.DataFrame, better: str) -> str:
    sign = 1.0 if better == "lower" else -1.0
    loss = sign * rivals["change"].to_numpy(dtype=float)
    surest = (rivals["change_low"] if better == "lower" else -rivals["change_high"]).fillna(float("-inf"))
    safe = rivals[(surest <= 0) & rivals["bytes_ratio"].notna() & rivals["change_low"].notna()]
    if safe.empty:
        least = rivals.iloc[int(loss.argmin())]
        return f"every method loses; the least is lost by {least['method_label']}: {_change(least)}{_cost(least)}."
    best = safe.iloc[int(safe["bytes_ratio"].to_numpy(dtype=float).argmin())]
    bound = float(best["change_high"] if better == "lower" else -best["change_low"])
    text = f"of those without a loss that the samples show, {best['method_label']} reads the fewest bytes"
    return f"{text}: {_change(best)}{_cost(best)}; a loss of up to {number(max(bound, 0.0))} cannot be excluded."


def _change(point: pd.Series[Any]) -> str:
    return f"{signed(point['change'])} [{signed(point['change_low'])}, {signed(point['change_high'])}]"


def _cost(point: pd.Series[Any]) -> str:
    return f" at density {number(point['density'], 2)}, reading {number(point['bytes_ratio'], 2)} of the bytes"
