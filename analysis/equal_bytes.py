"""Methods compared at equal bytes: each one's curve of (bytes read, score) is interpolated, never extrapolated.

Between two budgets of a method the score is linear in the logarithm of the bytes. Resamples are drawn once for all
budgets of both methods, so that a difference has the uncertainty of pairs; that of the interpolation itself (budgets
that are far apart) is not in the interval, which is why the budgets on both sides are named.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from . import significance, stats
from .headlines import DENSE, headline
from .numbers import number, over_all, signed
from .pool import Pool, grouped
from .table import TextTable

LEVELS = (0.5, 0.25, 0.125, 0.0625, 0.03125)  # bytes read over those of dense attention
COLUMNS = ("model", "setting", "heading", "bytes", "a", "a_between", "b", "b_between", "value_a", "value_b")
CHANGE = ("difference", "low", "high", "n", "p", "p_holm")


@dataclass(frozen=True)
class Budget:
    """One method at one budget: the share of bytes, its score with resamples, and what its n samples are of.

    `is_share`: the score is the share of right answers.
    """

    label: str
    share: float
    score: float
    draws_R: stats.Array
    n: int
    units: str
    is_share: bool = False


@dataclass(frozen=True)
class Mix:
    """A point on a curve: `weight` of the budget above, the rest of the one below."""

    below: Budget
    above: Budget
    weight: float

    @property
    def between(self) -> str:
        """The budgets that are interpolated, by name."""
        return f"{self.below.label} and {self.above.label}" if 0 < self.weight < 1 else self._nearest.label

    @property
    def _nearest(self) -> Budget:
        return self.above if self.weight == 1 else self.below

    @property
    def is_share(self) -> bool:
        """Whether both scores are shares of right answers."""
        return self.below.is_share and self.above.is_share

    @property
    def value(self) -> float:
        """The interpolated score."""
        return self.below.score + self.weight * (self.above.score - self.below.score)

    @property
    def draws_R(self) -> stats.Array:
        """The same of each resample."""
        return np.asarray(self.below.draws_R + self.weight * (self.above.draws_R - self.below.draws_R))


def compare(cells: pd.DataFrame) -> pd.DataFrame:
    """Every pair of methods at the levels of bytes that both curves reach: values, difference a - b, interval, p."""
    found = [pair for key, curves in _curves(cells).items() for pair in _pairs(key, curves)]
    drawn = stats.of_draws([a.value - b.value for _, a, b in found], [a.below.n for _, a, _ in found],
                             [a.draws_R - b.draws_R for _, a, b in found])  # fmt: skip
    changes = [stats.bounded(one) if one.error == 0 and a.is_share and b.is_share else one
               for one, (_, a, b) in zip(drawn, found, strict=True)]  # fmt: skip
    rows = [{**who, **_difference(a, b, change)} for (who, a, b), change in zip(found, changes, strict=True)]
    table = pd.DataFrame(rows, columns=[*COLUMNS, *CHANGE])
    table["p_holm"] = significance.holm(table["p"].to_numpy(dtype=float))
    return table


def interpolate(curve: list[Budget], share: float) -> Mix | None:
    """The point of a curve at a share of the bytes; None where it has none."""
    ordered = sorted(curve, key=lambda b: b.share)
    for below, above in itertools.pairwise(ordered):
        if below.share <= share <= above.share and below.share < above.share:
            weight = math.log(share / below.share) / math.log(above.share / below.share)
            return Mix(below, above, weight)
    return None


def _curves(cells: pd.DataFrame) -> dict[tuple[str, ...], dict[str, list[Budget]]]:
    found = defaultdict[tuple[str, ...], dict[str, list[Budget]]](lambda: defaultdict(list))
    scores = cells[cells["task"].map(_has_score).astype(bool) & (cells["method"] != DENSE)]
    pools = [pool for pool in map(Pool, grouped(scores)) if pool.arrays and pool.read_share["bytes_ratio"] > 0]
    draws = stats.draws([(np.concatenate(list(p.arrays.values())), p.head.statistic) for p in pools])
    for pool, (value, draws_R, n) in zip(pools, draws, strict=True):
        units = json.dumps([pool.units(task) for task in pool.arrays])
        share = pool.read_share["bytes_ratio"]
        right = pool.head.statistic is stats.mean and all(map(stats.is_binary, pool.arrays.values()))
        budget = Budget(str(pool.rows[0]["method_label"]), share, value, draws_R, n, units, right)
        found[pool.named(("model_label", "setting", "task_label"))][str(pool.rows[0]["method"])].append(budget)
    # two arguments that vary make a surface, along which no line is the method's curve
    return {key: {m: c for m, c in curves.items() if _is_curve(c)} for key, curves in found.items()}


def _is_curve(curve: list[Budget]) -> bool:
    words = [set(budget.label.split()) for budget in curve]
    fixed = set.intersection(*words)
    return all(len(w - fixed) <= 1 for w in words)


def _has_score(task: str) -> bool:
    head = headline(task)
    return head is not None and not head.is_time


def _pairs(key: tuple[str, ...], curves: Mapping[str, list[Budget]]) -> Iterator[tuple[dict[str, Any], Mix, Mix]]:
    for (a, ours), (b, theirs) in itertools.combinations(sorted(curves.items()), 2):
        for share in _levels(ours, theirs):
            mixes = interpolate(ours, share), interpolate(theirs, share)
            if mixes[0] and mixes[1] and _same_samples(mixes[0], mixes[1]):
                yield {**_who(key), "bytes": share, "a": a, "b": b}, mixes[0], mixes[1]


def _levels(ours: list[Budget], theirs: list[Budget]) -> list[float]:
    ends = [(min(b.share for b in curve), max(b.share for b in curve)) for curve in (ours, theirs)]
    low, high = max(e[0] for e in ends), min(e[1] for e in ends)
    # where no round share lies in what both reach, the middle of it is compared
    return [share for share in LEVELS if low <= share <= high] or ([math.sqrt(low * high)] if low < high else [])


def _same_samples(ours: Mix, theirs: Mix) -> bool:
    return len({b.units for m in (ours, theirs) for b in (m.below, m.above)}) == 1


def _who(key: tuple[str, ...]) -> dict[str, Any]:
    head = headline(key[2].split()[0])
    assert head is not None, "_curves keeps tasks with a score only"
    return {"model": key[0], "setting": key[1], "heading": head.words + key[2].removeprefix(head.task)}


def _difference(ours: Mix, theirs: Mix, change: stats.Interval) -> dict[str, Any]:
    return {
        "a_between": ours.between,
        "b_between": theirs.between,
        "value_a": ours.value,
        "value_b": theirs.value,
        "difference": change.value,
        "low": change.low,
        "high": change.high,
        "n": change.n,
        "p": significance.student(change),
    }


def lay_out(found: pd.DataFrame) -> TextTable:
    """The comparisons as text."""
    by = [name for name in ("model", "setting") if len(found[name].unique()) > 1]
    rows = [[*(str(row[name]) for name in by), *_texts(row)] for row in found.to_dict("records")]
    about = (
        "a − b where both read the same share of full's bytes, by interpolation between two budgets of each method "
        "(linear in the logarithm of the bytes; nothing is extrapolated). In brackets: 95% intervals over the samples "
        "that both have, which do not hold the error of the interpolation. *: the interval excludes 0; **: p < 0.05 "
        f"after Holm's correction over {over_all(len(found))}."
    )
    headings = [*by, "score", "bytes", "a", "b", "a's score", "b's score", "a − b"]
    return TextTable(headings, rows, len(by) + 4, about, [])


def _texts(row: Mapping[Any, Any]) -> list[str]:
    star = "**" if row["p_holm"] < 1 - stats.LEVEL else "*" if row["low"] > 0 or row["high"] < 0 else ""
    change = f"{signed(row['difference'])}{star} [{signed(row['low'])}, {signed(row['high'])}]"
    scores = [number(row["value_a"]), number(row["value_b"])]
    return [row["heading"], f"{row['bytes']:.3g}", row["a"], row["b"], *scores, change]
