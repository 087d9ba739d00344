"""What a plug-in's argument may be: read from its annotation, checked without importing the plug-in."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Within:
    """A number with low <= value <= high (low < value where `open_low`)."""

    low: float
    high: float = float("inf")
    open_low: bool = False

    def problem(self, value: float) -> str | None:
        """Say what is wrong with value, or nothing."""
        fits = (self.low < value if self.open_low else self.low <= value) and value <= self.high
        return None if fits else f"a number {self}"

    def __str__(self) -> str:
        left = f"above {self.low:g}" if self.open_low else f"of at least {self.low:g}"
        return left if self.high == float("inf") else f"{left} and at most {self.high:g}"


@dataclass(frozen=True)
class Share:
    """A float is a share in (0, 1], an int an absolute count of at least 1."""

    of: str

    def problem(self, value: float) -> str | None:
        """Say what is wrong with value, or nothing."""
        fits = value >= 1 if isinstance(value, int) else 0 < value <= 1
        return None if fits else f"a share of {self.of} in (0, 1] (0.25) or a whole number of at least 1 (64)"


@dataclass(frozen=True)
class Budget:
    """One word for a budget: of the arguments that bear this mark a plug-in takes exactly one.

    An amount holds for every layer; a list has one for each, the last of them for all layers that follow. In a sweep a
    list is an axis, as of any number, and a list in it are the amounts of the layers.
    """

    wanted: str
    kind: type
    high: float = float("inf")

    def problem(self, value: Any) -> str | None:
        """Say what is wrong with value, or nothing."""
        amounts = value if isinstance(value, (list, tuple)) else [value]
        fits = value is None or (len(amounts) > 0 and all(_is(a, self.kind) and 0 < a <= self.high for a in amounts))
        return None if fits else f"{self.wanted}, or a list of these by layer"


Keep = Annotated[
    float | tuple[float, ...] | None, Budget("a share in (0, 1] (a number of rows is the argument rows)", float, 1.0)
]
RowCount = Annotated[
    int | tuple[int, ...] | None, Budget("a whole number of at least 1 (a share is the argument keep)", int)
]
ByteCount = Annotated[int | tuple[int, ...] | None, Budget("a whole number of bytes", int)]


@dataclass(frozen=True)
class Needs:
    """The arguments of the task whose artifact the plug-in cannot do without (Loki needs a basis from task `pca`).

    Those named in `same` are the plug-in's own: thresholds for another k than the method's would be for another method.
    """

    task: str
    same: tuple[str, ...] = ()

    def problem(self, value: Mapping[str, Any]) -> str | None:
        """Accept any mapping; its content is checked against the task's own fields."""
        return None if isinstance(value, Mapping) else f"the arguments of task {self.task}, as a mapping"


@dataclass(frozen=True)
class Data:
    """A name in a folder of the package that holds data files (`prose` is harness/data/prose.jsonl.gz), or a path.

    Or data of the Hub, as hub:ORG/NAME@COMMIT:CONFIG:SPLIT. The first row of a file has to have the `fields`, or all
    of the `others` in their place, and the one that the argument `by` of the same plug-in names.
    """

    folder: str
    fields: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    by: str = ""

    def problem(self, value: str) -> str | None:
        """Accept any text; whether the file exists is seen when its digest is taken."""
        return None if isinstance(value, str) else "a file's name"


@dataclass(frozen=True)
class Module:
    """The name of a file of Python in a folder of the package (`taylor` is models/feature_maps/taylor.py)."""

    folder: str

    def problem(self, value: str) -> str | None:
        """Say what is wrong with value, or nothing."""
        known = [path.stem for path in (ROOT / self.folder).glob("*.py")]
        return None if value in known else f"a file of {self.folder} ({near(str(value), known)})"


NAMESPACE = {
    "Annotated": Annotated,
    "Any": Any,
    "ByteCount": ByteCount,
    "Data": Data,
    "Keep": Keep,
    "Literal": Literal,
    "Mapping": Mapping,
    "Module": Module,
    "Needs": Needs,
    "RowCount": RowCount,
    "Share": Share,
    "Within": Within,
}


def near(name: str, known: Iterable[str]) -> str:
    """The sentence that ends every 'unknown X': the near name, or what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"there is: {', '.join(known) or 'none'}"


def mark(kind: Any, of: type) -> Any | None:
    """The first annotation of class `of` in Annotated[..., mark], or None."""
    return next((m for m in getattr(kind, "__metadata__", ()) if isinstance(m, of)), None)


def takes_list(kind: Any) -> bool:
    """Whether a list is one value of this type (else a list in a sweep is an axis).

    Where a single number is a value too, it is an axis: the list of a budget's layers stands in another list.
    """
    if mark(kind, Budget):
        return False
    bare = kind.__origin__ if hasattr(kind, "__metadata__") else kind
    return typing.get_origin(bare) in (tuple, list) or any(takes_list(a) for a in _union(bare) or ())


def problem(value: Any, kind: Any) -> str | None:
    """What was expected, when value does not fit the annotation; None when it does."""
    if budget := mark(kind, Budget):
        return str(wrong) if (wrong := budget.problem(value)) else None
    if hasattr(kind, "__metadata__"):
        wrong = problem(value, kind.__origin__)
        found = (m.problem(value) for m in kind.__metadata__ if hasattr(m, "problem") and value is not None)
        return wrong or next((p for p in found if p), None)
    if options := _union(kind):
        wrongs = [problem(value, k) for k in options]
        return None if None in wrongs else " or ".join(map(str, wrongs))
    return _plain_problem(value, kind)


def _plain_problem(value: Any, kind: Any) -> str | None:
    origin = typing.get_origin(kind)
    if origin is Literal:
        choices = typing.get_args(kind)
        return (
            None if value in choices and type(value) in map(type, choices) else f"one of {', '.join(map(str, choices))}"
        )
    if origin is tuple:
        inner = typing.get_args(kind)[0]
        ok = isinstance(value, (list, tuple)) and len(value) > 0 and all(problem(v, inner) is None for v in value)
        one = next((w for v in value if (w := problem(v, inner))), None) if isinstance(value, (list, tuple)) else None
        return None if ok else f"a list of {one or _name(inner)}"
    if kind is Any:
        return None
    return None if _is(value, origin or kind) else f"{_name(kind)}"


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _union(kind: Any) -> tuple[Any, ...] | None:
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else None


def _name(kind: Any) -> str:
    if hasattr(kind, "__metadata__"):
        return _name(kind.__origin__)
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "nothing"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))
