"""Two tables of records compared: scores with paired intervals, times with bands, cells that only one has."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from . import stats
from .headlines import Headline, headline, units
from .numbers import number, signed

SAME = ("model", "method_label", "task", "dtype", "device", "ranks", "prefill", "query_aware", "seed")
BUDGET = re.compile(r"\bk=([\d.]+)")
Rows = Mapping[tuple[str, ...], "pd.Series[Any]"]


@dataclass(frozen=True)
class Diff:
    """What `compare` found: lines to print, and whether B is worse than A anywhere."""

    text: str
    worse: bool


@dataclass(frozen=True)
class Verdict:
    """One cell in both tables; `kind` is worse, better or same; `performance` is its line for ReFrame."""

    kind: str
    text: str
    performance: str = ""


def compare(a: pd.DataFrame, b: pd.DataFrame, band: float = 0.05, least: float = 0.001) -> Diff:
    """Compare B with A, cell by cell; cells are matched by what was asked, whatever their keys.

    A score is worse when the 95% interval of its paired difference lies on the worse side and the difference is more
    than `least` of A's value (rounding differs between machines); a time, when its median is more than `band` longer;
    a cell that ended well in A and did not in B is worse too.

    Raises:
        ValueError: a table has no records, or the tables have no cell in common.
    """
    before, after = _cells(a, "the first"), _cells(b, "the second")
    common = [k for k in before if k in after]
    if not common:
        raise ValueError("the two tables have no cell in common; compare records of the same sweep")
    verdicts = [_verdict(before[k], after[k], band, least) for k in common]
    lines = [*_listed(verdicts, "worse"), *_listed(verdicts, "better")]
    lines += [*_alone(before, after, "A"), *_alone(after, before, "B")]
    same = sum(v.kind == "same" for v in verdicts)
    worse = sum(v.kind == "worse" for v in verdicts)
    count = f"{len(common)} cells in both: {worse} worse, {len(common) - same - worse} better, {same} the same"
    rule = f"(scores: 95% paired interval and more than {least:.1%}; times: more than {band:.0%})"
    measured = [v.performance for v in verdicts if v.performance]
    return Diff("\n".join([*lines, f"{count} {rule}", *measured]) + "\n", worse > 0)


def _cells(frame: pd.DataFrame, which: str) -> dict[tuple[str, ...], pd.Series[Any]]:
    if frame.empty:
        raise ValueError(f"{which} table has no records; run its sweep first (lacuna run SWEEP)")
    return {_identity(row): row for _, row in frame.iterrows() if headline(row["task"]) is not None}


def _identity(row: pd.Series[Any]) -> tuple[str, ...]:
    args = json.dumps(json.loads(row["cell_json"])["task"]["args"], sort_keys=True)
    # budgets were called k until they became keep (a share) and rows (a count): the question is the same
    said = {name: str(row[name]) for name in SAME}
    said["method_label"] = BUDGET.sub(lambda k: f"{'keep' if '.' in k[1] else 'rows'}={k[1]}", said["method_label"])
    return (*said.values(), args)


def _name(row: pd.Series[Any]) -> str:
    args = json.loads(row["cell_json"])["task"]["args"]
    task = ", ".join(f"{k}={v}" for k, v in args.items())
    return (
        f"{row['model']} x {row['method_label']} x {row['task']}({task}) {row['dtype']} {row['device']} x{row['ranks']}"
    )


def _verdict(before: pd.Series[Any], after: pd.Series[Any], band: float, least: float) -> Verdict:
    good = (before["status"] == "ok", after["status"] == "ok")
    if not all(good):
        kind = "worse" if good[0] else "better" if good[1] else "same"
        return Verdict(kind, f"{_name(after)}: {before['status']} -> {after['status']} {after['reason']}".rstrip())
    head = headline(after["task"])
    assert head is not None, "_cells keeps tasks with a headline only"
    mine, other = (json.loads(row["samples_json"]) for row in (after, before))
    return (_time if head.is_time else _score)(head, (mine, other), _name(after), band if head.is_time else least)


def _time(head: Headline, samples: tuple[Any, Any], name: str, band: float) -> Verdict:
    after, before = (head.values(s) for s in samples)
    change = stats.ratio(after, before, head.statistic)
    if math.isnan(change.value):
        return Verdict("same", f"{name}: no samples")
    kind = "worse" if change.value > 1 + band else "better" if change.value < 1 / (1 + band) else "same"
    medians = [number(head.statistic.value(v)) for v in (before, after)]
    interval = f"{change.value - 1:+.1%} [{change.low - 1:+.1%}, {change.high - 1:+.1%}]"
    limits = f"l:None, u:{band:g}"
    line = _performance(name, head, "ms", (head.statistic.value(after), head.statistic.value(before)), limits)
    return Verdict(kind, f"{name}: {head.words} {medians[0]} -> {medians[1]}, {interval}", line)


def _score(head: Headline, samples: tuple[Any, Any], name: str, least: float) -> Verdict:
    after, before = (head.values(s) for s in samples)
    if not len(after) or not len(before):
        return Verdict("same", f"{name}: no samples")
    values = [stats.interval(v, head.statistic) for v in (before, after)]
    change = _difference(head, samples)
    sign = 1.0 if head.better == "higher" else -1.0
    clear = change.excludes(0.0) and abs(change.value) > least * abs(values[0].value)
    kind = "same" if not clear else "better" if change.value * sign > 0 else "worse"
    band = f"{signed(change.value)} [{signed(change.low)}, {signed(change.high)}]"
    limits = f"l:-{least:g}, u:None" if head.better == "higher" else f"l:None, u:{least:g}"
    line = _performance(name, head, "1", (values[1].value, values[0].value), limits)
    return Verdict(kind, f"{name}: {head.words} {number(values[0].value)} -> {number(values[1].value)}, {band}", line)


def _performance(name: str, head: Headline, unit: str, values: tuple[float, float], limits: str) -> str:
    # as ReFrame writes performance variables: B's value, A's as the reference, bounds as shares of it
    plain = re.sub(r"[^A-Za-z0-9_.=]+", "_", name).strip("_")
    return f"P: {plain}.{head.metric}: {values[0]:.6g} {unit} (r:{values[1]:.6g}, {limits})"


def _difference(head: Headline, samples: tuple[Any, Any]) -> stats.Interval:
    mine, other = (head.values(s) for s in samples)
    if units(samples[0]) == units(samples[1]) and len(mine) == len(other):
        return stats.difference(mine, other, head.statistic)
    return stats.unpaired(mine, other, head.statistic)


def _listed(verdicts: list[Verdict], kind: str) -> Iterator[str]:
    yield from (f"{kind:<7} {v.text}" for v in verdicts if v.kind == kind)


def _alone(ours: Rows, theirs: Rows, name: str) -> Iterator[str]:
    yield from (f"only {name}  {_name(row)}" for key, row in ours.items() if key not in theirs)
