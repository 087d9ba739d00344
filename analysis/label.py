"""Names that tell cells apart: as short as the table at hand allows, never ambiguous."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from textwrap import fill
from typing import Any

import pandas as pd

from .headlines import UNITS, headline

UNUSED = ("trace", "provenance_json", "artifact_json", "host", "gpu", "started", "seconds")
SETTING = ("dtype", "device", "ranks", "prefill", "query_aware")
WIDE = 36  # letters above a panel
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")  # no part of a word, or of a version


def label_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells of tasks that have a headline, each key once, with parsed samples and labels.

    Adds `model_label`, `setting`, `method_label` (made unique), `task_label`, `task_id` (equal for equal questions),
    `samples`, `ledger`, and `unread` where these two cannot be parsed. What does not vary in the table is not named; an
    argument of a task that its samples carry too (a needle's length) is a condition inside the measurement and does not
    split it.

    Raises:
        ValueError: there are no records at all.
    """
    if frame.empty:
        raise ValueError("there are no records to show; run the sweep first (lacuna run SWEEP)")
    known = frame["task"].map({t: headline(t) is not None for t in frame["task"].unique()})
    needed = [c for c in frame.columns if c not in UNUSED]
    # plain Python texts: a group is a few rows, and picking them out of Arrow's columns takes most of the time
    cells = frame.loc[known.astype(bool), needed].drop_duplicates("key", keep="last").sort_values("key").astype(object)
    samples = [_parsed(text, list) for text in cells["samples_json"]]
    ledgers = [_parsed(text, dict) for text in cells["ledger_json"]]
    cells["unread"] = [a is None or b is None for a, b in zip(samples, ledgers, strict=True)]
    cells["samples"] = [found or [] for found in samples]
    whole: list[Any] = [found or {} for found in ledgers]
    cells["ledger"] = whole
    return _labelled(cells, [json.loads(text) for text in cells["cell_json"]])


def tell_apart(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each name, followed by those of its facts that differ among the entries of the same name."""
    flat = [_flat(f) for f in facts]
    total, seen = Counter(names), defaultdict[tuple[str, str], Counter[str]](Counter)
    for name, fact in zip(names, flat, strict=True):
        for k, v in fact.items():
            seen[name, k][v] += 1
    varies = {pair for pair, values in seen.items() if len(values) > 1 or values.total() < total[pair[0]]}
    tails = [[f"{k}={v}" for k, v in f.items() if (n, k) in varies] for n, f in zip(names, flat, strict=True)]
    return [" ".join([n, *t]).strip() for n, t in zip(names, tails, strict=True)]


def condition(point: pd.Series[Any]) -> str:
    """Model and setting of a point, as the heading of a panel or a sentence has them."""
    return " ".join(str(part) for part in (point["model"], point["setting"]) if part)


def title(points: pd.DataFrame) -> str:
    """The heading of a panel of scores: its condition and, below, what is one number in it (lengths of a needle)."""
    pooled = sorted(set(points["pooled"]) - {""})
    said = f"{pooled[0]}, together" if len(pooled) == 1 else "several arguments together" if pooled else ""
    return "\n".join(text for text in (fill(condition(points.iloc[0]), WIDE), said) if text)


def by_number(labels: pd.Series) -> pd.Series:
    """Keys that sort labels as a reader does: `prompt=4096` before `prompt=32768`."""
    return labels.map(lambda label: NUMBER.sub(lambda found: f"{float(found[0]):020.6f}", str(label)))


def in_order(found: pd.DataFrame, by: Sequence[str]) -> list[pd.DataFrame]:
    """Rows of equal labels, in the order of these."""
    names = list(by)
    return [rows for _, rows in found.sort_values(names, key=by_number, kind="stable").groupby(names, sort=False)]


def _parsed(text: str, kind: type) -> Any | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, kind) else None


def _labelled(cells: pd.DataFrame, specs: list[dict[str, Any]]) -> pd.DataFrame:
    inside = _carried(cells)
    tasks = [_task_facts(s, inside.get(s["task"]["name"], set())) for s in specs]
    cells["task_id"] = [json.dumps([_identity(s["task"]), s["seed"]], sort_keys=True) for s in specs]
    cells["model_label"] = tell_apart(list(cells["model"]), [_identity(s["model"]) for s in specs])
    methods = [_identity(s["method"]) for s in specs]
    cells["method_label"] = tell_apart(_completed(cells["method_label"], methods), methods)
    cells["task_label"] = tell_apart(list(cells["task"]), _without_files(list(cells["task"]), tasks))
    cells["setting"] = tell_apart([""] * len(cells), [{k: s[k] for k in SETTING} for s in specs])
    return cells.copy()  # in one piece: columns that came one by one make each later step slow, and pandas says so


def _carried(cells: pd.DataFrame) -> dict[str, set[str]]:
    # units are inside even where every cell failed, and no sample is there to say so
    names: dict[str, set[str]] = {t: set(UNITS) for t in cells["task"].unique() if not _is_time(t)}
    for task, samples in zip(cells["task"], cells["samples"], strict=True):
        if samples and not _is_time(task):
            names[task].update(samples[0])
    # a sample's `window` is its number, an argument's is a length: perplexities of two lengths are two questions
    return {task: known - {"window"} for task, known in names.items()}


def _completed(labels: Iterable[str], methods: list[dict[str, Any]]) -> list[str]:
    # a default that others of its method depart from is named too: `window=1020` beside `window=252`
    seen = defaultdict[tuple[str, str], set[str]](set)
    for method in methods:
        for k, v in method["args"].items():
            seen[method["name"], k].add(json.dumps(v))
    return [
        " ".join([label, *(f"{k}={v}" for k, v in m["args"].items() if _unsaid(k, v, label, seen[m["name"], k]))])
        for label, m in zip(labels, methods, strict=True)
    ]


def _unsaid(name: str, value: Any, label: str, seen: set[str]) -> bool:
    plain = value is not None and not isinstance(value, Mapping)
    return plain and len(seen) > 1 and f" {name}=" not in label


def _is_time(task: str) -> bool:
    found = headline(task)
    return found is not None and found.is_time


def _identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in spec.items() if k != "source"}


def _task_facts(spec: Mapping[str, Any], inside: set[str]) -> dict[str, Any]:
    task = spec["task"]
    args = {k: v for k, v in task["args"].items() if k not in inside}
    return {"args": args, "version": task["version"], "digest": task["digest"], "seed": spec["seed"]}


def _without_files(names: Sequence[str], facts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Facts less the digest and arguments that name files, for tasks that the rest tells apart as well."""
    files = {(n, k) for n, f in zip(names, facts, strict=True) for k, v in f["args"].items() if _is_file(v)}
    short = [
        {**f, "digest": "", "args": {k: v for k, v in f["args"].items() if (n, k) not in files}}
        for n, f in zip(names, facts, strict=True)
    ]
    whole, less = (_different(names, some) for some in (facts, short))
    return [s if whole[n] == less[n] else f for n, f, s in zip(names, facts, short, strict=True)]


def _different(names: Sequence[str], facts: Sequence[dict[str, Any]]) -> Counter[str]:
    """How many different facts each name has."""
    return Counter(name for name, _ in {(n, json.dumps(f, sort_keys=True)) for n, f in zip(names, facts, strict=True)})


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and PurePath(value).is_absolute()


def _shown(value: Any) -> str:
    return "/".join(PurePath(value).parts[-2:]) if _is_file(value) else str(value)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for k, v in facts.items():
        name = prefix if k == "args" else f"{prefix}{k}"
        found |= _flat(v, f"{name}." if name else "") if isinstance(v, Mapping) else {name: _shown(v)}
    return found
