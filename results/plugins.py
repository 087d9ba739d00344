"""The registry is the file name: what plug-ins there are and what they take, read with `ast`, importing nothing."""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from . import rules
from .cell import Spec
from .fields import NAMESPACE, Budget, Share, mark, near

ROOT = Path(__file__).resolve().parent.parent
FOLDERS: Mapping[str, str] = {
    "methods": "models/methods",
    "tasks": "harness/tasks",
    "ops": "kernels",
    "figures": "analysis/figures",
    "papers": "analysis/papers",
    "models": "models/zoo",
    "sites": "jobs/sites",
}
MODULES = ("ops", "figures", "papers")  # a plug-in is the module itself, not a class in it
REQUIRED = object()


@dataclass(frozen=True)
class Field:
    """One argument of a plug-in: its name, its annotation evaluated, its default (REQUIRED if it has none)."""

    name: str
    kind: Any
    default: Any


@dataclass(frozen=True)
class Plugin:
    """What a plug-in's file says of itself; `constants` are its literal class variables (a task's `headline`)."""

    kind: str
    name: str
    version: int
    doc: str
    fields: tuple[Field, ...]
    constants: Mapping[str, Any]

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.strip().split("\n")[0]


def names(kind: str) -> list[str]:
    """Names of every plug-in of a kind (a key of FOLDERS), sorted."""
    folder = ROOT / FOLDERS[kind]
    if kind == "ops":
        return sorted(p.parent.name for p in folder.glob("*/__init__.py"))
    return sorted(p.stem for p in folder.glob(f"*.{_suffix(kind)}") if not p.stem.startswith("_"))


def source(kind: str, name: str) -> Path:
    """The file of a plug-in.

    Raises:
        ValueError: no such plug-in; the message has the near name.
    """
    if name not in names(kind):
        raise ValueError(f"unknown {kind[:-1]} {name!r}: {near(name, names(kind))}")
    folder = ROOT / FOLDERS[kind]
    return folder / name / "__init__.py" if kind == "ops" else folder / f"{name}.{_suffix(kind)}"


@functools.cache
def describe(kind: str, name: str) -> Plugin:
    """Read a Python plug-in's docstring, version and arguments without importing it.

    Raises:
        ValueError: no such plug-in, or its file defines no plug-in.
    """
    tree = ast.parse(source(kind, name).read_text(encoding="utf-8"))
    doc = ast.get_docstring(tree) or ""
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")), None)
    if kind in MODULES:
        version = _op_version(name, tree.body) if kind == "ops" else _version(tree.body)
        return Plugin(kind, name, version, doc, (), {})
    if node is None:
        raise ValueError(f"{kind[:-1]} {name!r} defines no public class in its file")
    text = ast.get_docstring(node) or doc
    return Plugin(kind, name, _version(node.body), text, tuple(_fields(node)), _constants(node))


def load(kind: str, name: str) -> Any:
    """Import a plug-in: the one public class of a method's or task's file, else the module itself.

    Raises:
        ValueError: no such plug-in.
    """
    source(kind, name)
    package = __name__.rsplit(".", 2)[0]
    module = importlib.import_module(f"{package}.{FOLDERS[kind].replace('/', '.')}.{name}")
    if kind in MODULES:
        return module
    own = (v for k, v in vars(module).items() if not k.startswith("_") and isinstance(v, type))
    return next(v for v in own if v.__module__ == module.__name__)


def defaults(plugin: Plugin, given: Container[str]) -> dict[str, Any]:
    """Defaults of the arguments that were not given; one word of a budget, once given, takes the place of another."""
    words = [f.name for f in plugin.fields if mark(f.kind, Budget)]
    spoken = any(word in given for word in words)
    left = [f for f in plugin.fields if f.name not in given]
    return {f.name: None if spoken and f.name in words else f.default for f in left}


def check(kind: str, name: str, args: Mapping[str, Any]) -> None:
    """Hold arguments against the rules in the plug-in's `__post_init__`, without importing the plug-in.

    Raises:
        ValueError: they do not go together.
    """
    rule = _rule(source(kind, name))
    if rule is None:
        return
    package = __name__.rsplit(".", 2)[0]
    module = f"{package}.{FOLDERS[kind].replace('/', '.')}.{name}"
    stand_in = type(name, (), {"__module__": module})()
    vars(stand_in).update({k: tuple(v) if isinstance(v, list) else v for k, v in args.items()})
    with suppress(AttributeError, NameError):  # what needs the plug-in itself is told when it is made
        rule(stand_in)


@functools.cache
def _rule(path: Path) -> Any | None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")), None)
    found = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__post_init__"] if node else []
    if not found:
        return None
    # the text comes from a file of this package, never from a user's sweep
    scope: dict[str, Any] = {"rules": rules, **_literals(tree.body)}
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module([*future, *found], []), str(path), "exec"), scope)  # noqa: S102
    return scope["__post_init__"]


def _literals(body: list[ast.stmt]) -> dict[str, Any]:
    found = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:  # no literal: a rule that uses it is told by the tests of plug-ins
                continue
    return found


def _suffix(kind: str) -> str:
    return "yaml" if kind in ("models", "sites") else "py"


def label(kind: str, spec: Spec) -> str:
    """A method or task as people name it: budgets always, other arguments where they are not the default."""
    return " ".join([spec.name, *(f"{k}={_brief(v)}" for k, v in _shown(kind, spec).items())])


def _shown(kind: str, spec: Spec) -> dict[str, Any]:
    plain = {k: v for k, v in spec.args.items() if not isinstance(v, Mapping) and v is not None}
    try:
        fields = describe(kind, spec.name).fields
    except ValueError:  # a record may outlive its plug-in's file
        return plain
    named = [f.name for f in fields if f.name in plain and (_is_budget(f.kind) or not _same(plain[f.name], f.default))]
    known = {f.name for f in fields}
    older = [k for k in plain if k not in known]  # arguments of an earlier version, its budget among them
    return {k: plain[k] for k in (*older, *named)}


def _same(value: Any, default: Any) -> bool:
    return bool(value == (list(default) if isinstance(default, tuple) else default))


def _is_budget(kind: Any) -> bool:
    options = (kind, *getattr(kind, "__args__", ()))  # `Annotated[float, Share(...)] | None` is a budget too
    return any(mark(option, Share) or mark(option, Budget) for option in options)


def _brief(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_brief, value))
    path = PurePath(str(value))
    return "/".join(path.parts[-2:]) if path.is_absolute() else str(value)


def _op_version(name: str, body: list[ast.stmt]) -> int:
    """The second argument of `OP = Op(name, version, ...)`, or the one named `version`."""
    made = [n.value for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "OP"]
    call = made[0] if made and isinstance(made[0], ast.Call) else ast.Call(ast.Name("Op"), [], [])
    told = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "version")]
    if not told:
        raise ValueError(f"op {name!r} has no line `OP = Op(name, version, ...)` in its file")
    return int(ast.literal_eval(told[0]))


def _version(body: list[ast.stmt]) -> int:
    for node in body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id in ("version", "VERSION"):
            return int(ast.literal_eval(node.value))
    return 1


def _constants(node: ast.ClassDef) -> dict[str, Any]:
    lines = [n for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" in ast.unparse(n.annotation)]
    return {ast.unparse(n.target): ast.literal_eval(n.value) for n in lines if isinstance(n.value, ast.Constant)}


def _fields(node: ast.ClassDef) -> list[Field]:
    lines = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return [_field(n) for n in lines if "ClassVar" not in ast.unparse(n.annotation)]


def _field(node: ast.AnnAssign) -> Field:
    # the annotation comes from a file of this package, never from a user's sweep
    kind = eval(ast.unparse(node.annotation), dict(NAMESPACE))  # noqa: S307
    name = node.target.id  # type: ignore[union-attr]
    return Field(name, kind, REQUIRED if node.value is None else _default(node.value))


def _default(node: ast.expr) -> Any:
    call = isinstance(node, ast.Call) and ast.unparse(node).startswith("field(default_factory=dict")
    return {} if call else ast.literal_eval(node)
