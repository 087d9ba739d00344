"""Models that a cell of the same sweep trains: {trained: {model: ..., train: {...}, seed: 0, ranks: 8}}."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..results.cell import Cell, Spec, canonical
from ..results.fields import near, problem
from .arguments import Arguments
from .document import Faults, Node, shown

SETTINGS = ("seed", "dtype", "ranks")
KEYS = ("model", "train", *SETTINGS)


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and how; `settings` are the training cell's own seed, dtype and ranks."""

    model: Spec
    task: Spec
    settings: Mapping[str, Any]

    def cell(self, asked: Cell, full: Spec) -> Cell:
        """The training cell for a cell that asks for the model: the same settings but its own."""
        return replace(
            asked, model=self.model, method=full, task=self.task, prefill="dense", query_aware=False, **self.settings
        )


class Recipes:
    """Reads them; a model that is not there yet stands in cells by its recipe's digest until they are whole."""

    def __init__(self, arguments: Arguments, faults: Faults, kinds: Mapping[str, Any]) -> None:
        self.arguments, self.faults, self.kinds = arguments, faults, kinds
        self.known: dict[str, Recipe] = {}

    def read(self, node: Node, model: Callable[[Node], Spec | None]) -> Spec | None:
        """The stand-in of {trained: ...}; `model` reads what it begins with."""
        given = node.value["trained"].value
        if not isinstance(given, dict) or not {"model", "train"} <= given.keys():
            self.faults.add(node.line, "trained takes {model: {new: SHAPE}, train: {argument: value}}")
            return None
        for key in given.keys() - set(KEYS):
            self.faults.add(given[key].line, f"trained has no key {key!r}: {near(key, KEYS)}")
        settings = {key: given[key].plain for key in SETTINGS if key in given}
        for key, value in settings.items():
            if wrong := problem(value, self.kinds[key]):
                self.faults.add(given[key].line, f"trained.{key} is {shown(value)}, expected {wrong}")
        begun = model(given["model"])
        choice = self.arguments.choice("task", Node({"train": given["train"]}, given["train"].line))
        if begun is None or choice is None:
            return None
        if any(len(axis.values) > 1 for axis in choice.axes):
            self.faults.add(given["train"].line, "trained takes one value of each argument: list the models instead")
            return None
        recipe = Recipe(begun, choice.spec((0,) * len(choice.axes), self.arguments.inputs), settings)
        digest = hashlib.sha256(canonical(vars(recipe)).encode()).hexdigest()[:16]
        self.known[digest] = recipe
        name = f"{begun.name.removeprefix('new-')}-{recipe.task.args['attention']}"
        return Spec(name, digest=digest)
