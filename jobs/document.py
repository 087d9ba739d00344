"""A YAML file whose every value knows its line; what is wrong is gathered and told at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

MOST_VALUES = 1_000_000  # an alias of an alias of an alias... (a "billion laughs" file) ends here
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}


class SweepError(ValueError):
    """Everything that is wrong with a sweep file, one `file:line: sentence` each."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


@dataclass
class Faults:
    """What was found wrong so far in a file."""

    file: str
    found: dict[tuple[int, str], None] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)

    def add(self, line: int, sentence: str) -> None:
        """Note a fault; the same sentence for the same line is told once."""
        if line not in self.unreadable:
            self.found[line, sentence] = None

    def cannot_read(self, line: int, sentence: str) -> None:
        """Note that a value is none, so that whatever is missed because of it is not told too."""
        self.add(line, sentence)
        self.unreadable.add(line)

    def stop(self) -> None:
        """End here if anything was wrong.

        Raises:
            SweepError: something was.
        """
        if self.found:
            lines = sorted(self.found, key=lambda fault: fault[0])
            raise SweepError(f"{f'{self.file}:{line}' if line else '--set'}: {sentence}" for line, sentence in lines)


@dataclass(frozen=True)
class Node:
    """A scalar, a list of Nodes or a mapping of Nodes; `line` is that of its key, where it has one."""

    value: Any
    line: int

    @classmethod
    def of(cls, value: Any, line: int) -> Node:
        """A value that stands in no file, as if it stood in that line."""
        if isinstance(value, Mapping):
            return cls({name: cls.of(child, line) for name, child in value.items()}, line)
        return cls([cls.of(child, line) for child in value] if isinstance(value, (list, tuple)) else value, line)

    @property
    def plain(self) -> Any:
        """The value without the lines."""
        if isinstance(self.value, dict):
            return {name: child.plain for name, child in self.value.items()}
        return [child.plain for child in self.value] if isinstance(self.value, list) else self.value

    def __str__(self) -> str:
        return shown(self.plain)


def shown(value: Any) -> str:
    """A value as one would write it in the file, cut to 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_plain(value: Any) -> bool:
    """Whether a value is text, nothing, or a number that JSON can hold (`.nan` is none, a date neither)."""
    if isinstance(value, (int, float)):
        return abs(value) < 2**63  # false for a NaN
    return value is None or isinstance(value, str)


def parse(path: Path, faults: Faults) -> Node:
    """Read a file.

    Raises:
        SweepError: it cannot be read, or is not YAML.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        raw = loader.get_single_node()
        return _Tree(loader, faults).node(raw) if raw else Node({}, 1)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        faults.add(mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}")
    except UnicodeDecodeError:
        faults.add(1, "not text in UTF-8")
    except OSError as error:
        faults.add(1, f"cannot be read: {error.strerror or error}")
    except RecursionError:
        faults.add(1, "nested too deeply to be a sweep")
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        faults.add(1, f"not YAML: {' '.join(str(error).split())}")
    faults.stop()
    raise AssertionError


class _Tree:
    """Turns yaml's nodes into ours, each once, however often it is aliased."""

    def __init__(self, loader: yaml.SafeLoader, faults: Faults) -> None:
        self.loader, self.faults = loader, faults
        self.done: dict[yaml.Node, tuple[Node, int]] = {}
        self.open: set[yaml.Node] = set()

    def node(self, raw: yaml.Node) -> Node:
        return self._sized(raw)[0]

    def _sized(self, raw: yaml.Node) -> tuple[Node, int]:
        if raw in self.open:
            raise ValueError(f"the alias in line {raw.start_mark.line + 1} contains itself")
        if raw not in self.done:
            self.open.add(raw)
            self.done[raw] = self._made(raw)
            self.open.remove(raw)
        if self.done[raw][1] > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values")
        return self.done[raw]

    def _made(self, raw: yaml.Node) -> tuple[Node, int]:
        line = raw.start_mark.line + 1
        if raw.tag not in PLAIN:
            self.faults.cannot_read(line, f"{_kind(raw)} is not a value of a sweep; put it in quotes if text is meant")
            return Node(None, line), 1
        if isinstance(raw, yaml.MappingNode):
            return self._mapping(raw, line)
        if isinstance(raw, yaml.SequenceNode):
            children = [self._sized(child) for child in raw.value]
            return Node([n for n, _ in children], line), 1 + sum(size for _, size in children)
        return Node(self._scalar(raw, line), line), 1

    def _mapping(self, raw: yaml.MappingNode, line: int) -> tuple[Node, int]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        total = 1
        for key, value in raw.value:
            at, (child, size) = key.start_mark.line + 1, self._sized(value)
            total += size
            if key.tag == MERGE:
                merged = {**self._merged(child, at), **merged}
            elif self._is_new(key, own):
                own[key.value] = replace(child, line=at)
        return Node({**merged, **own}, line), total

    def _is_new(self, key: yaml.Node, own: Mapping[str, Node]) -> bool:
        line, name = key.start_mark.line + 1, key.value
        if not isinstance(key, yaml.ScalarNode) or key.tag != TEXT:
            self.faults.add(line, f"a key must be text, found {_kind(key)}; put it in quotes")
            return False
        if name in own:
            self.faults.add(line, f"the key {shown(name)} is there twice, first in line {own[name].line}")
        return name not in own

    def _merged(self, child: Node, line: int) -> dict[str, Node]:
        layers = child.value if isinstance(child.value, list) else [child]
        if not all(isinstance(layer.value, dict) for layer in layers):
            self.faults.add(line, "<< takes a mapping or a list of mappings")
            return {}
        return {name: value for layer in reversed(layers) for name, value in layer.value.items()}

    def _scalar(self, raw: yaml.Node, line: int) -> Any:
        try:
            value = self.loader.construct_object(raw)
        except (ValueError, LookupError, yaml.YAMLError):
            self.faults.cannot_read(line, f"{shown(str(raw.value))} cannot be read as {_kind(raw)}")
            return None
        if not is_plain(value):
            self.faults.cannot_read(line, f"{shown(str(raw.value))} is not a number that a result can depend on")
            return None
        return value


def _kind(raw: yaml.Node) -> str:
    return str(raw.tag).replace("tag:yaml.org,2002:", "!!")
