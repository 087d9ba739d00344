"""A sweep file becomes Cells: the product of its lists, less what it excludes; all of its errors at once.

In short: `model`, `method` and `task` take a name, {name: {argument: value}} or a list of these; a list is an axis;
`zip` makes axes advance together, `exclude` drops cells, `blocks` are sweeps on top of the file's own defaults.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ..results import plugins
from ..results.cell import Cell, Spec
from ..results.fields import Needs, Within, mark, near, problem
from ..results.store import Store
from .arguments import Arguments, Axis, check_columns, pinned
from .block import PARTS, Block, Zip, check_zips
from .document import Faults, Node, SweepError, parse, shown
from .exclude import Rule, RuleReader
from .inputs import Inputs
from .overrides import Overrides
from .trained import Recipes

__all__ = ["Sweep", "SweepError", "read"]

MOST_CELLS = 200_000
HINTS = typing.get_type_hints(Cell)
SETTINGS: Mapping[str, Any] = {
    "dtype": HINTS["dtype"],
    "device": HINTS["device"],
    "ranks": Annotated[int, Within(1)],
    "prefill": HINTS["prefill"],
    "query_aware": bool,
    "seed": Annotated[int, Within(0)],
}
BLOCK_KEYS = (*PARTS, *SETTINGS, "zip", "exclude")


@dataclass(frozen=True)
class Sweep:
    """The cells that somebody wants, in the file's order, and those whose artifacts they need."""

    name: str
    cells: tuple[Cell, ...]
    needed: tuple[Cell, ...] = ()

    def keys(self) -> list[str]:
        """Keys of all cells, those that others need first."""
        return list(dict.fromkeys(cell.key for cell in (*self.needed, *self.cells)))


def read(path: Path, store: Store | Path, overrides: Sequence[str] = (), data: Path | None = None) -> Sweep:
    """Read a sweep file; `overrides` such as "ranks=1" win over the file; `data` holds its data files.

    Raises:
        SweepError: something in it is wrong; all of that is told.
    """
    faults = Faults(str(path))
    store = store if isinstance(store, Store) else Store(store)
    reader = _Reader(faults, Inputs(path.parent, store, data), Overrides.read(overrides, SETTINGS, faults))
    return reader.sweep(parse(path, faults), path.stem)


class _Reader:
    def __init__(self, faults: Faults, inputs: Inputs, overrides: Overrides) -> None:
        self.faults, self.inputs, self.overrides = faults, inputs, overrides
        self.arguments = Arguments(inputs, faults)
        self.recipes = Recipes(self.arguments, faults, SETTINGS)
        self.needed: dict[str, Cell] = {}
        self.checked: dict[int, Spec] = {}
        self.sources: dict[tuple[Any, ...], tuple[Spec, Cell]] = {}  # the Spec is held, so that its id stays its own

    def sweep(self, root: Node, stem: str) -> Sweep:
        top = self._keys(root, "the sweep", ("name", *BLOCK_KEYS, "blocks"))
        name = self._name(top.get("name"), stem)
        zips, rules = self._zips(top.get("zip")), self._rules(top.get("exclude"))
        blocks = [self._block(own, root.line, zips, rules) for own in self._blocks(top)]
        self._check_zips(blocks, zips)
        self.overrides.check_used(self.faults)
        self.faults.stop()
        cells = {cell.key: cell for block in blocks for cell in self._kept(block)}
        for rule in {id(rule): rule for block in blocks for rule in block.rules}.values():
            if not rule.hits and not self.overrides.touches(rule):
                self.faults.add(rule.line, "this exclude matches no cell; take it out or mend it")
        if not cells:
            self.faults.add(root.line, "this sweep has no cells: everything is excluded")
        self.faults.stop()
        return Sweep(name, tuple(cells.values()), tuple(self.needed.values()))

    def _keys(self, node: Node, what: str, known: Sequence[str]) -> dict[str, Node]:
        if not isinstance(node.value, dict):
            self.faults.add(node.line, f"{what} is {node}, expected a mapping")
            return {}
        for key in node.value.keys() - set(known):
            self.faults.add(node.value[key].line, f"unknown key {key!r}: {near(key, known)}")
        return node.value

    def _name(self, node: Node | None, stem: str) -> str:
        name = node.value if node else stem
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,100}", name):
            line, found = (node.line, str(node)) if node else (1, shown(stem))
            self.faults.add(line, f"name is {found}, expected letters, digits, '.', '-' and '_'")
        return str(name)

    def _blocks(self, top: Mapping[str, Node]) -> Iterator[dict[str, Node]]:
        defaults = {key: node for key, node in top.items() if key in PARTS or key in SETTINGS}
        if "blocks" not in top:
            yield defaults
            return
        node = top["blocks"]
        if not isinstance(node.value, list) or not node.value:
            self.faults.add(node.line, f"blocks is {node}, expected a list of mappings")
            return
        for entry in node.value:
            yield {**defaults, **self._keys(entry, "a block", BLOCK_KEYS)}

    def _block(self, own: Mapping[str, Node], line: int, zips: Sequence[Zip], rules: Sequence[Rule]) -> Block:
        for part in PARTS:
            if part not in own:
                self.faults.add(line, f"{part} is missing, expected a name or {{name: {{argument: value}}}}")
        nodes = {part: self._alternatives(part, own[part]) if part in own else [] for part in PARTS}
        models = [self._model(node) for node in nodes["model"]]
        methods = [self.arguments.choice("method", node) for node in nodes["method"]]
        tasks = [self.arguments.choice("task", node) for node in nodes["task"]]
        return Block(
            [model for model in models if model],
            [method for method in methods if method],
            [task for task in tasks if task],
            [self._setting(name, kind, {**own, **self.overrides.values}) for name, kind in SETTINGS.items()],
            frozenset(part for part in PARTS if part in own and isinstance(own[part].value, list)),
            [*zips, *self._zips(own.get("zip"))],
            [*rules, *self._rules(own.get("exclude"))],
            complete=all([*nodes.values(), *models, *methods, *tasks]),
        )

    def _check_zips(self, blocks: Sequence[Block], zips: Sequence[Zip]) -> None:
        if not all(block.complete for block in blocks):
            return  # an axis of a plug-in that could not be read would look unknown
        check_zips(zips, blocks, self.faults)
        for block in blocks:
            check_zips(block.zips[len(zips) :], [block], self.faults)

    def _alternatives(self, part: str, node: Node) -> list[Node]:
        nodes = node.value if isinstance(node.value, list) else [node]
        if not nodes:
            self.faults.add(node.line, f"{part} is an empty list, which gives no cells")
        return [self.overrides.into(part, one) for one in nodes]

    def _model(self, node: Node) -> Spec | None:
        try:
            if isinstance(node.value, dict) and "trained" in node.value:
                return self.recipes.read(node, self._model)
            if isinstance(node.value, dict):
                return self.inputs.model(node.plain)
            if isinstance(node.value, str):
                return self.inputs.zoo(node.value)
            wrong = f"model is {node}, expected a name, {{path: FOLDER}} or {{repo: ORG/NAME, revision: COMMIT}}"
        except (ValueError, OSError) as error:
            wrong = str(error)
        self.faults.add(node.line, wrong)
        return None

    def _setting(self, name: str, kind: Any, given: Mapping[str, Node]) -> Axis:
        node = given.get(name) or Node(getattr(Cell, name), 0)
        listed = isinstance(node.value, list)
        values = node.plain if listed else [node.plain]
        if not values:
            self.faults.add(node.line, f"{name} is an empty list, which gives no cells")
        for value in values:
            if wrong := problem(value, kind):
                self.faults.add(node.line, f"{name} is {shown(value)}, expected {wrong}")
        return Axis(name, (name,), values, listed, node.line)

    def _rules(self, node: Node | None) -> list[Rule]:
        return RuleReader(self.arguments, SETTINGS).rules(node)

    def _zips(self, node: Node | None) -> list[Zip]:
        entries = [] if node is None else node.value if isinstance(node.value, list) else [node]
        zips = [Zip(tuple(e.plain), e.line) for e in entries if _is_names(e.value)]
        for entry in entries:
            if not _is_names(entry.value):
                self.faults.add(entry.line, f"zip has {entry}, expected lists of axes such as [method.topk.k, seed]")
        left = [replace(one, names=tuple(n for n in one.names if n not in self.overrides.values)) for one in zips]
        return [one for one in left if len(one.names) > 1]

    def _kept(self, block: Block) -> Iterator[Cell]:
        for count, cell in enumerate(block.cells(self.inputs)):
            if count == MOST_CELLS:
                self.faults.add(1, f"more than {MOST_CELLS} cells in a block; cut the sweep into several")
                self.faults.stop()
            dropped = [rule.drops(cell) for rule in block.rules]  # a list, so that every rule counts its hits
            if not any(dropped):
                self._check("methods", cell.method, block, cell.method)
                self._check("tasks", cell.task, block, cell.task)
                yield self._complete(cell, block)

    def _check(self, kind: str, spec: Spec, block: Block, told: Spec) -> None:
        """Hold each method and task once against its own rules; what is wrong stands where `told` stands."""
        if id(spec) in self.checked:
            return
        self.checked[id(spec)] = spec
        try:
            plugins.check(kind, spec.name, spec.args)
            check_columns(plugins.describe(kind, spec.name), spec.args, self.inputs)
        except ValueError as error:
            self.faults.add(block.line(told), str(error))

    def _complete(self, cell: Cell, block: Block, told: Spec | None = None) -> Cell:
        """The cell with the keys of the cells whose artifacts it takes."""
        needs = []
        for kind, spec in (("methods", cell.method), ("tasks", cell.task)):
            for one in plugins.describe(kind, spec.name).fields:
                needed = mark(one.kind, Needs)
                if needed and spec.args[one.name] is not None:
                    needs.append((one.name, self._source(cell, spec, one.name, needed, block, told or spec).key))
        recipe = self.recipes.known.get(cell.model.digest)
        if recipe is not None:
            training = self._complete(recipe.cell(cell, self._full), block, told or cell.model)
            if training.key not in self.needed:
                self._check("tasks", training.task, block, told or cell.model)
            made = self.needed.setdefault(training.key, training).key
            cell, needs = replace(cell, model=replace(cell.model, digest=made)), [*needs, ("model", made)]
        return replace(cell, needs=tuple(needs)) if needs else cell

    @functools.cached_property
    def _full(self) -> Spec:
        full = self.arguments.choice("method", Node("full", 1))
        if full is None:
            self.faults.stop()
        assert full is not None
        return full.spec((), self.inputs)

    def _source(self, cell: Cell, spec: Spec, argument: str, needed: Needs, block: Block, told: Spec) -> Cell:
        """The cell whose artifact an argument of `spec` takes; thousands of cells share one, so it is made once."""
        asked = (id(spec), argument, id(cell.model), *(getattr(cell, name) for name in SETTINGS))
        if asked not in self.sources:
            args = {**spec.args[argument], **{name: spec.args[name] for name in needed.same}}
            self.sources[asked] = spec, self._made(cell, needed.task, args, block, told)
        return self.sources[asked][1]

    def _made(self, cell: Cell, task: str, args: Mapping[str, Any], block: Block, told: Spec) -> Cell:
        spec = pinned(plugins.describe("tasks", task), args, self.inputs)
        other = self._complete(replace(cell, method=self._full, task=spec, query_aware=False), block, told)
        if other.key not in self.needed:
            self._check("tasks", spec, block, told)
        return self.needed.setdefault(other.key, other)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(n.value, str) for n in value)
