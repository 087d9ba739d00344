"""What the command line says in place of a sweep file: a setting, or an argument of a method or task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from ..results.fields import near
from .document import Faults, Node, is_plain, shown
from .exclude import Rule

ARGUMENT = re.compile(r"(method|task)\.([\w-]+)\.(\w+)")


@dataclass
class Overrides:
    """Values by the name of their axis: `ranks`, or `task.NAME.ARGUMENT`; `used` are those that had an effect."""

    values: Mapping[str, Node]
    used: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, texts: Sequence[str], settings: Mapping[str, object], faults: Faults) -> Overrides:
        """From texts such as "ranks=1" or "task.lm_eval.limit=4"."""
        found = {}
        for text in texts:
            name, _, written = text.partition("=")
            if name not in settings and not ARGUMENT.fullmatch(name):
                told = "expected method.NAME.ARGUMENT or task.NAME.ARGUMENT" if "." in name else near(name, settings)
                faults.add(0, f"unknown setting {name!r}: {told}")
                continue
            try:
                value = yaml.safe_load(written)
            except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError, RecursionError):
                value = []
            if is_plain(value):
                found[name] = Node(value, 0)
            else:
                faults.add(0, f"{name} takes one value, found {shown(written)}")
        return cls(found)

    def into(self, part: str, node: Node) -> Node:
        """A method or task with its arguments as they are on the command line."""
        name, given = (node.value, None) if isinstance(node.value, str) else _only(node.value)
        if given is not None and not isinstance(given.value, dict | None):
            return node  # a fault, told where it is read
        start = f"{part}.{name}."
        mine = {key.removeprefix(start): value for key, value in self.values.items() if key.startswith(start)}
        if not mine:
            return node
        self.used.update(f"{start}{argument}" for argument in mine)
        whole = {**((given and given.value) or {}), **mine}
        return Node({name: Node(whole, node.line)}, node.line)

    def touches(self, rule: Rule) -> bool:
        """Whether what a rule speaks of is not as the file says."""
        spoken = {
            f"{part}.{name}.{argument}"
            for part, alternatives in rule.parts.items()
            for name, wanted in alternatives
            for argument in wanted
        }
        return bool(self.values.keys() & {*rule.settings, *spoken})

    def check_used(self, faults: Faults) -> None:
        """Refuse an argument of what is not in the sweep."""
        for name in sorted(self.values.keys() - self.used):
            if found := ARGUMENT.fullmatch(name):
                faults.add(0, f"{name} sets nothing: this sweep has no {found[1]} {found[2]!r}")


def _only(value: object) -> tuple[str, Node | None]:
    """Name and arguments of {name: {argument: value}}; no name where it is none."""
    if isinstance(value, dict) and len(value) == 1:
        return next(iter(value.items()))
    return "", None
