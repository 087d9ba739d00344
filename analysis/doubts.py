"""Records that are not what they should be: each kind is counted and named, and none vanishes without a word."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ..results.archive import PARTS, Archive
from ..results.record import STATUSES
from .numbers import plural

MOST_KEYS = 4
MOST_TWICE = 2000  # records of doubled keys whose samples are compared
QUESTION = ("dtype", "device", "ranks", "prefill", "query_aware", "seed")


def doubtful(archive: Archive) -> list[str]:
    """Sentences on keys that are there twice, questions that are asked twice, other schemas and other statuses."""
    return [text for text in (_twice(archive), _again(archive), _foreign(archive), _statuses(archive)) if text]


def listed(keys: Iterable[object]) -> str:
    """The first few keys, and how many more there are."""
    known = [str(key) for key in keys]
    more = len(known) - MOST_KEYS
    return ", ".join(known[:MOST_KEYS]) + (f" and {more} more" if more > 0 else "")


def _twice(archive: Archive) -> str:
    keys = archive.lean["key"]
    count = int(keys.duplicated().sum())
    if not count:
        return ""
    places = np.flatnonzero(keys.duplicated(keep=False).to_numpy())[:MOST_TWICE]
    rows = archive.load(places).drop_duplicates(["key", "status", "samples_json"])
    differ = int(rows.loc[rows.duplicated("key"), "key"].nunique())
    said = f", and {plural(differ, 'key')} {'has' if differ == 1 else 'have'} other results" if differ else ""
    return f"{plural(count, 'record')} too many: of those with the same key the last was used{said}."


def _again(archive: Archive) -> str:
    asked = pd.DataFrame({part: archive.codes[part] for part in PARTS})
    for name in QUESTION:
        asked[name] = pd.factorize(archive.lean[name])[0]
    sound = archive.codes["task"] >= 0
    again = sound & asked.duplicated().to_numpy() & ~archive.lean["key"].duplicated().to_numpy()
    keys = archive.lean.loc[again, "key"]
    verb = "asks" if len(keys) == 1 else "ask"
    return (
        f"{plural(len(keys), 'cell')} {verb} what another one asks too, with other calibrations or data under the same "
        f"names: of each question the last was used ({listed(keys)})."
        if len(keys)
        else ""
    )


def _foreign(archive: Archive) -> str:
    keys = archive.lean.loc[archive.codes["task"] < 0, "key"]
    return (
        f"{plural(len(keys), 'record')} of another schema, of which the cell has no model, method and task with name, "
        f"version and arguments; not shown: {listed(keys)}."
        if len(keys)
        else ""
    )


def _statuses(archive: Archive) -> str:
    counts = archive.lean["status"].value_counts()
    strange = {str(status): int(count) for status, count in counts.items() if count and status not in STATUSES}
    text = ", ".join(f"{status or 'none at all'} ({plural(count, 'record')})" for status, count in strange.items())
    return f"Statuses that this version does not know: {text}; they count as failed." if strange else ""
