"""Tasks of lm-eval by name or file, on the data of the Hub or on files; with `model`, the only door to that library."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from ..layouts import in_hub_columns
from ..rows import read_rows
from .model import Model

FEWSHOT_SEED = 1234  # lm-eval's own default


@dataclass(frozen=True)
class Wanted:
    """A task by name or path, the files in place of the Hub's data, how many examples, and how many documents."""

    name: str
    data: str | None
    shots_data: str | None
    shots: int | None
    limit: int | None


def judge(model: Model, tasks: dict[str, Any], limit: int | None, chat: str) -> Mapping[str, Any]:
    """lm-eval's results; its progress bars, one for each task, would lie between our lines."""
    with contextlib.redirect_stderr(io.StringIO()):
        found = evaluate(
            model,
            tasks,
            limit=limit,
            bootstrap_iters=0,
            apply_chat_template=chat != "none",
            fewshot_as_multiturn=chat == "turns",
        )
    assert found is not None, "every rank is rank 0 to lm-eval"
    return dict(found)


def build(wanted: Wanted) -> dict[str, Any]:
    """What lm-eval's `evaluate` takes: the tasks that a name stands for, with their data.

    Raises:
        ValueError: no such task, or its data cannot be had.
    """
    datasets.disable_progress_bars()
    for library in ("lm_eval", "huggingface_hub"):  # they tell of every default that a task takes, and of each try
        logging.getLogger(library).setLevel(logging.ERROR)
    name = wanted.name
    manager = _manager(name)
    entries = _leaves(name, manager.task_index)
    if wanted.data is None:
        try:
            loaded = manager.load(name)
        except Exception as error:  # of many libraries: no network, no such set
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(
                f"{name} cannot be had ({type(error).__name__}: {reason}): its data need the network once, "
                "or give data, a file"
            ) from error
    else:
        built = {leaf: _local(wanted, leaf, path) for leaf, path in entries}
        loaded = {"tasks": built, "groups": {}, "group_map": {}}
    for leaf, made in loaded["tasks"].items():
        _set_shots(wanted, leaf, made)
    return dict(loaded)


def _leaves(name: str, index: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """Names and files of the tasks that a name stands for."""
    path = Path(name)
    if path.is_file():
        return [(str(load_yaml(path, resolve_func=False)["task"]), path)]
    entry, members = index[name], []
    if entry.yaml_path is None:
        members = sorted(entry.tags)
    elif "group" in (entry.cfg or {}):
        members = [m if isinstance(m, str) else m["task"] for m in entry.cfg["task"]]
    if not members:
        return [(name, Path(entry.yaml_path))]
    return [leaf for member in members for leaf in _leaves(member, index)]


def _local(wanted: Wanted, leaf: str, path: Path) -> ConfigurableTask:
    """A task of lm-eval on a file."""
    config = {**load_yaml(path, resolve_func=True)}  # theirs is remembered
    tests = "test_split" if config.get("test_split") else "validation_split"
    # examples from the same file may come from anywhere in it; else what will not be asked need not be prepared
    here = _rows(leaf, wanted.data, config, None if wanted.shots_data == wanted.data else wanted.limit)
    splits = {"here": here}
    config |= {"training_split": None, "validation_split": None, "test_split": None, "fewshot_split": None}
    config |= {tests: "here", "dataset_path": None, "dataset_kwargs": None}
    if wanted.shots_data is not None:  # from the same file, lm-eval leaves a document's own example out
        config["fewshot_split"] = "here" if wanted.shots_data == wanted.data else "shots"
        splits["shots"] = _rows(leaf, wanted.shots_data, config, None)
    elif wanted.shots or (wanted.shots is None and config.get("num_fewshot")):
        raise ValueError(f"{leaf} has few-shot examples: give shots_data, a file to take them from, or shots: 0")
    for key in ("tag", "group"):
        config.pop(key, None)
    config["custom_dataset"] = lambda **_: splits
    return ConfigurableTask(config=config)


def _rows(leaf: str, name: str | None, config: Mapping[str, Any], limit: int | None) -> datasets.Dataset:
    assert name is not None
    rows = in_hub_columns(leaf, name, read_rows(name), str(config.get("dataset_name") or ""))
    return datasets.Dataset.from_list([dict(row) for row in rows[:limit]])


def _set_shots(wanted: Wanted, leaf: str, made: Any) -> None:
    if wanted.shots is not None:
        if made.get_config("num_fewshot") == 0 and wanted.shots:
            raise ValueError(f"{leaf} has its examples in its prompt: leave shots out, or give 0")
        made.set_config(key="num_fewshot", value=wanted.shots)
    made.set_fewshot_seed(seed=FEWSHOT_SEED)


@functools.cache
def _manager(name: str) -> TaskManager:
    """lm-eval's index of the families in which a name stands: reading all of its 14,000 tasks takes half a minute.

    Raises:
        ValueError: it stands nowhere.
    """
    if Path(name).is_file():
        return TaskManager(include_defaults=False)
    stands = re.compile(rf"^\W*(?:task|group|tag)?\W*{re.escape(name)}\W*$", re.MULTILINE)
    root, families, known = Path(lm_eval.tasks.__file__).parent, set(), set()
    for path in root.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        known.update(re.findall(r"^\W*(?:task|group)\W+([\w.:-]+)\W*$", text, re.MULTILINE))
        if stands.search(text):
            families.add(root / path.relative_to(root).parts[0])
    made = TaskManager(include_defaults=False, include_path=[str(f) for f in sorted(families)])
    if not families or name not in made.task_index:
        raise ValueError(f"lm-eval knows no task {name!r}: {_few(name, known)}")
    return made


def _few(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are {len(known)}, `lm-eval ls tasks` has them"
