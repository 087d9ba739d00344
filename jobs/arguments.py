"""A plug-in as a sweep names it: its arguments checked against the plug-in's own fields, its lists turned into axes."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from ..results import plugins
from ..results.cell import Spec
from ..results.fields import Budget, Data, Needs, Share, mark, near, problem, takes_list
from .document import Faults, Node, shown
from .inputs import Inputs


@dataclass(frozen=True)
class Axis:
    """An argument and the values it takes in turn; `path` leads to it within the arguments."""

    name: str
    path: tuple[str, ...]
    values: Sequence[Any]
    listed: bool
    line: int


@dataclass(frozen=True)
class Choice:
    """One alternative of `method` or `task`: its defaults, and an axis for each argument that was given."""

    plugin: plugins.Plugin
    base: Mapping[str, Any]
    axes: tuple[Axis, ...]
    line: int
    made: dict[tuple[int, ...], Spec] = field(default_factory=dict)

    def spec(self, at: tuple[int, ...], inputs: Inputs) -> Spec:
        """The plug-in with the at[i]-th value of the i-th axis; made once."""
        if at not in self.made:
            args = copy.deepcopy(dict(self.base))
            for axis, index in zip(self.axes, at, strict=True):
                _put(args, axis.path, axis.values[index])
            self.made[at] = pinned(self.plugin, args, inputs)
        return self.made[at]


def pinned(plugin: plugins.Plugin, args: Mapping[str, Any], inputs: Inputs) -> Spec:
    """The Spec of a plug-in whose arguments are complete, with the digests of its data files."""
    marks = ((data_of(f.kind), args[f.name]) for f in plugin.fields)
    files = [(data, name) for data, value in marks if data and value is not None for name in _each(value)]
    digests = [inputs.data(data, name)[1] for data, name in files]
    return Spec(plugin.name, plugin.version, args, "-".join(digests))


def check_columns(plugin: plugins.Plugin, args: Mapping[str, Any], inputs: Inputs) -> None:
    """Hold data files against the columns that other arguments name.

    Raises:
        ValueError: a first row lacks one.
    """
    for one in plugin.fields:
        data = data_of(one.kind)
        if data and data.by and args[one.name] is not None:
            inputs.data(Data(data.folder, (args[data.by],)), args[one.name])


@dataclass(frozen=True)
class Arguments:
    """Reads the alternatives of one file."""

    inputs: Inputs
    faults: Faults

    def choice(self, axis: str, node: Node) -> Choice | None:
        """One alternative of an axis (`method` or `task`): a name, or {name: {argument: value}}."""
        name, given = self.named(axis, node)
        plugin = self.plugin(f"{axis}s", name, node.line) if name else None
        if plugin is None:
            return None
        base, axes = self._filled(plugin, given, (axis, plugin.name), node.line)
        return Choice(plugin, base, tuple(axes), node.line)

    def named(self, axis: str, node: Node) -> tuple[str, Mapping[str, Node]]:
        """The name and the arguments of an alternative; no name where it is none."""
        if isinstance(node.value, str) and node.value:
            return node.value, {}
        if isinstance(node.value, dict) and len(node.value) == 1:
            name, given = next(iter(node.value.items()))
            if given.value is None or isinstance(given.value, dict):
                return name, given.value or {}
        self.faults.add(node.line, f"{axis} is {node}, expected a name or {{name: {{argument: value}}}}")
        return "", {}

    def plugin(self, kind: str, name: str, line: int) -> plugins.Plugin | None:
        """What the plug-in's file says of it."""
        try:
            return plugins.describe(kind, name)
        except ValueError as error:
            self.faults.add(line, str(error))
            return None

    def _filled(
        self, plugin: plugins.Plugin, given: Mapping[str, Node], at: tuple[str, ...], line: int
    ) -> tuple[dict[str, Any], list[Axis]]:
        base: dict[str, Any] = {}
        axes: list[Axis] = []
        for name in given.keys() - {f.name for f in plugin.fields}:
            there = near(name, (f.name for f in plugin.fields))
            self.faults.add(given[name].line, f"{'.'.join(at)} has no argument {name!r}: {there}")
        rest = plugins.defaults(plugin, given)
        self._one_budget(plugin, given, at)
        for one in plugin.fields:
            node = given.get(one.name)
            if needs := mark(one.kind, Needs):
                base[one.name], more = self._needed(needs, one, node, at, line)
                axes += more
            elif node is None:
                base[one.name] = self._default(replace(one, default=rest[one.name]), at, line)
            else:
                base[one.name] = None  # the axis fills it in
                axes.append(self._axis(one, node, at))
        return base, axes

    def _one_budget(self, plugin: plugins.Plugin, given: Mapping[str, Node], at: tuple[str, ...]) -> None:
        words = [one.name for one in plugin.fields if mark(one.kind, Budget)]
        told = [word for word in words if word in given and given[word].value is not None]
        for word in told[1:]:
            wrong = f"{'.'.join(at)} has {word} beside {told[0]}, expected one of {', '.join(words)}"
            self.faults.add(given[word].line, wrong)

    def _needed(
        self, needs: Needs, one: plugins.Field, node: Node | None, at: tuple[str, ...], line: int
    ) -> tuple[dict[str, Any] | None, list[Axis]]:
        if node is None and not isinstance(one.default, Mapping):
            return self._default(one, at, line), []
        if node is not None and not isinstance(node.value, dict):
            wrong = f"{'.'.join(at)}.{one.name} is {node}, expected the arguments of task {needs.task}, as a mapping"
            self.faults.add(node.line, wrong)
            return None, []
        plugin = self.plugin("tasks", needs.task, line)
        given = node.value if node else {name: Node.of(value, line) for name, value in one.default.items()}
        if plugin is None:
            return None, []
        own = replace(plugin, fields=tuple(f for f in plugin.fields if f.name not in needs.same))
        return self._filled(own, given, (*at, one.name), node.line if node else line)

    def _default(self, one: plugins.Field, at: tuple[str, ...], line: int) -> Any:
        if one.default is plugins.REQUIRED:
            wanted = problem(one, one.kind) or "a value"
            self.faults.add(line, f"{'.'.join(at)} lacks its argument {one.name}, expected {wanted}")
            return None
        return self._final(one, one.default, Node(one.default, line), at)

    def _axis(self, one: plugins.Field, node: Node, at: tuple[str, ...]) -> Axis:
        listed = isinstance(node.value, list)
        if takes_list(one.kind):  # then a list is one value, and a list of lists is the axis
            listed = listed and any(isinstance(child.value, list) for child in node.value)
        if listed and not node.value:
            self.faults.add(node.line, f"{'.'.join(at)}.{one.name} is an empty list, which gives no cells")
        nodes = node.value if listed else [node]
        values = [self._final(one, child.plain, child, at) for child in nodes]
        return Axis(".".join((*at, one.name)), (*at[2:], one.name), values, listed, node.line)

    def _final(self, one: plugins.Field, value: Any, node: Node, at: tuple[str, ...]) -> Any:
        name = ".".join((*at, one.name))
        if wrong := problem(value, one.kind):
            self.faults.add(node.line, f"{name} is {shown(value)}, expected {wrong}{_hint(value)}")
            return None
        data = data_of(one.kind)
        if not data or value is None:
            return exact(value, one.kind)
        try:
            found = [self.inputs.data(data, name)[0] for name in _each(value)]
            return found if isinstance(value, (list, tuple)) else found[0]
        except ValueError as error:
            self.faults.add(node.line, f"{name}: {error}")
            return None


def data_of(kind: Any) -> Data | None:
    """What says that an argument names a data file, or several; None where it does not."""
    arms = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    inner = (typing.get_args(arm)[0] if typing.get_origin(arm) in (tuple, list) else arm for arm in arms)
    return next((found for found in (mark(one, Data) for one in inner) if found), None)


def _each(value: Any) -> Sequence[str]:
    return value if isinstance(value, (list, tuple)) else [value]


def exact(value: Any, kind: Any) -> Any:
    """The one form of equal values: 1 where only a float fits is 1.0, a tuple is a list (as JSON has it)."""
    options = _options(kind)
    if isinstance(value, (list, tuple)):
        inner = next((typing.get_args(o)[0] for o in options if typing.get_origin(o) in (tuple, list)), Any)
        return [exact(v, inner) for v in value]
    only_float = float in options and int not in options and mark(kind, Share) is None
    return float(value) if only_float and type(value) is int else value


def _options(kind: Any) -> list[Any]:
    bare = kind.__origin__ if hasattr(kind, "__metadata__") else kind
    arms = typing.get_args(bare) if not isinstance(bare, type) and typing.get_origin(bare) not in (tuple, list) else ()
    return [option for arm in arms for option in _options(arm)] or [bare]


def _hint(value: Any) -> str:
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        return ""
    return "" if number is None else f" (YAML takes {value} for text: write {yaml.safe_dump(number).split()[0]})"


def _put(args: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        args = args[name]
    args[path[-1]] = value
