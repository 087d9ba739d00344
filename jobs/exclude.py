"""Cells that a sweep leaves out: a rule drops those that match all that it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..results import plugins
from ..results.cell import Cell, Spec
from ..results.fields import near, problem, takes_list
from .arguments import Arguments, exact
from .document import Node, shown

Alternative = tuple[str, Mapping[str, Any]]


@dataclass
class Rule:
    """A cell is dropped if each named part of it is one of the alternatives; `hits` counts those that were."""

    line: int
    parts: Mapping[str, Sequence[Alternative]]
    settings: Mapping[str, Sequence[Any]]
    hits: int = 0

    def drops(self, cell: Cell) -> bool:
        """Whether the cell is left out."""
        fits = all(getattr(cell, name) in values for name, values in self.settings.items()) and all(
            _is_one_of(getattr(cell, name), alternatives) for name, alternatives in self.parts.items()
        )
        self.hits += fits
        return fits


def _is_one_of(spec: Spec, alternatives: Sequence[Alternative]) -> bool:
    return any(spec.name == name and _matches(spec.args, wanted) for name, wanted in alternatives)


def _matches(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return all(name in found and _matches(found[name], value) for name, value in wanted.items())
    if isinstance(wanted, tuple):
        return any(_matches(found, one) for one in wanted)
    return type(found) is type(wanted) and bool(found == wanted)  # 1 is a count and 1.0 a share


@dataclass(frozen=True)
class RuleReader:
    """Reads the `exclude` of a block; `settings` are the kinds of the axes that are no plug-ins."""

    arguments: Arguments
    settings: Mapping[str, Any]

    def rules(self, node: Node | None) -> list[Rule]:
        """The rules of a list of mappings."""
        if node is None:
            return []
        entries = node.value if isinstance(node.value, list) else [node]
        wrong = [entry for entry in entries if not isinstance(entry.value, dict) or not entry.value]
        for entry in wrong:
            self._fault(entry.line, f"exclude has {entry}, expected mappings such as {{method: NAME, task: NAME}}")
        return [self._rule(entry) for entry in entries if entry not in wrong]

    def _rule(self, entry: Node) -> Rule:
        parts, settings = {}, {}
        for name, node in entry.value.items():
            nodes = node.value if isinstance(node.value, list) else [node]
            if name in ("model", "method", "task"):
                parts[name] = [self._alternative(name, one) for one in nodes]
            elif name in self.settings:
                settings[name] = [self._setting(name, one) for one in nodes]
            else:
                known = ("model", "method", "task", *self.settings)
                self._fault(node.line, f"exclude has an unknown key {name!r}: {near(name, known)}")
        return Rule(entry.line, parts, settings)

    def _setting(self, name: str, node: Node) -> Any:
        if wrong := problem(node.plain, self.settings[name]):
            self._fault(node.line, f"exclude.{name} is {node}, expected {wrong}")
        return node.plain

    def _alternative(self, part: str, node: Node) -> Alternative:
        name, given = self.arguments.named(part, node)
        if part == "model" or not name:
            return name, {}
        plugin = self.arguments.plugin(f"{part}s", name, node.line)
        return name, self._wanted(plugin, given) if plugin else {}

    def _wanted(self, plugin: plugins.Plugin, given: Mapping[str, Node]) -> dict[str, Any]:
        kinds = {one.name: one.kind for one in plugin.fields}
        for name in given.keys() - kinds.keys():
            self._fault(given[name].line, f"{plugin.name} has no argument {name!r}: {near(name, kinds)}")
        return {name: self._values(name, node, kinds[name]) for name, node in given.items() if name in kinds}

    def _values(self, name: str, node: Node, kind: Any) -> Any:
        several = isinstance(node.value, list) and not takes_list(kind)
        values = node.plain if several else [node.plain]
        for value in values:
            if wrong := problem(value, kind):
                self._fault(node.line, f"exclude: {name} is {shown(value)}, expected {wrong}")
        return tuple(exact(value, kind) for value in values) if several else exact(node.plain, kind)

    def _fault(self, line: int, sentence: str) -> None:
        self.arguments.faults.add(line, sentence)
