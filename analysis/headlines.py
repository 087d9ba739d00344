"""What a task's headline number is, and how samples become it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results.plugins import describe
from . import stats

UNITS = ("id", "window", "length", "depth", "repeat")
CLUSTER = "problem"  # samples of one problem are draws of one prompt: together they are one sample
DENSE = "full"  # the method that every difference and every speed-up refers to


@dataclass(frozen=True)
class Headline:
    """The metric that stands for a task, as its file says, and which direction is better."""

    task: str
    metric: str
    better: str

    @property
    def words(self) -> str:
        """The metric as a table's heading has it."""
        words = self.metric.removesuffix("_median").replace("_", " ")
        return words if self.task.split("_")[0] in words else f"{self.task} {words}"

    @property
    def is_time(self) -> bool:
        """A latency: compared as a ratio, and never pooled over conditions."""
        return "_ms" in self.metric

    @property
    def statistic(self) -> stats.Statistic:
        """What the headline is of its samples."""
        return stats.median if self.is_time else stats.perplexity if self.metric == "perplexity" else stats.mean

    def values(self, samples: Sequence[Mapping[str, Any]]) -> stats.Array:
        """Samples as [n, C] numbers for `statistic`; [0, C] where they do not carry them.

        Several draws of one problem count as one sample, their mean: another set of problems is what chance could have
        brought, and draws of a problem that is too hard say the same n times.
        """
        if self.is_time:
            rows = [[s["ms"]] for s in samples if "ms" in s and s.get("phase", "decode") == "decode"]
        elif self.metric == "perplexity":
            rows = [_weighed(s) for s in samples if "nll_nats" in s and "tokens" in s]
        else:
            drawn = _clustered([s for s in samples if "score" in s])
            rows = [[sum(s["score"] for s in draws) / len(draws)] for draws in drawn]
        return np.array(rows, dtype=np.float64) if rows else np.empty((0, 2))


def _weighed(sample: Mapping[str, Any]) -> list[float]:
    """A window's loss and its weight: its tokens, unless the sample says that windows count alike."""
    if "weight" not in sample:
        return [sample["nll_nats"], sample["tokens"]]
    return [sample["nll_nats"] / sample["tokens"] * sample["weight"], sample["weight"]]


def units(samples: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """What each sample is of; a pair is a sample of the same window, or of the same needle at the same place."""
    return [tuple(draws[0].get(name) for name in UNITS) for draws in _clustered(samples)]


def _clustered(samples: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Samples of one problem together, in the order of their first; each of the others alone."""
    found = defaultdict[Any, list[Mapping[str, Any]]](list)
    for place, sample in enumerate(samples):
        found[sample.get(CLUSTER, place)].append(sample)
    return list(found.values())


def headline(task: str) -> Headline | None:
    """The headline of a task; None for one that has none (a calibration) or whose file is not installed."""
    try:
        constants = describe("tasks", task).constants
    except ValueError:
        return None
    metric = constants.get("headline")
    return Headline(task, metric, constants.get("better", "higher")) if metric else None
