"""Plug-ins are found by their file's name and read without being imported."""

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from typing import Annotated, Literal, get_type_hints

import pytest
import yaml

from lacuna.results import plugins
from lacuna.results.cell import Cell, Spec
from lacuna.results.fields import Share, Within, problem, takes_list

KINDS = ("methods", "tasks")


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in KINDS for n in plugins.names(k)])
def test_what_is_read_is_what_is_there(kind, name):
    """The planner reads fields with `ast`; if they differed from the class, cells would get wrong arguments and keys."""
    told, real = plugins.describe(kind, name), plugins.load(kind, name)
    fields = {f.name: f for f in dataclasses.fields(real)}
    assert [f.name for f in told.fields] == list(fields)
    assert told.version == real.version
    assert told.summary
    hints = get_type_hints(real, include_extras=True)
    for field in told.fields:
        own = fields[field.name]
        made = own.default_factory is not dataclasses.MISSING
        absent = own.default is dataclasses.MISSING and not made
        default = plugins.REQUIRED if absent else own.default_factory() if made else own.default
        assert field.default == default
        assert field.kind == hints[field.name]
    assert real.__name__.lower() == name.replace("_", "")
    assert dataclasses.is_dataclass(real)
    assert real.__dataclass_params__.frozen


@pytest.mark.parametrize("name", plugins.names("ops"))
def test_the_version_of_an_op_is_that_of_its_timings(name):
    """An op whose timings were made anew would be listed under the version of the old ones."""
    assert str(plugins.describe("ops", name).version) == plugins.load("ops", name).OP.version


@pytest.mark.parametrize("line", ["", 'OP = Op("mine")', "OP = made()", "version = 2"])
def test_an_op_that_tells_no_version_is_refused(line, tmp_path, monkeypatch):
    """An op would be listed under a version that nobody gave it."""
    (tmp_path / "kernels" / "mine").mkdir(parents=True)
    (tmp_path / "kernels" / "mine" / "__init__.py").write_text(line)
    monkeypatch.setattr(plugins, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="op 'mine' has no line"):
        plugins.describe("ops", "mine")


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in KINDS for n in plugins.names(k)])
def test_defaults_are_valid_and_survive_yaml(kind, name):
    """A default that its own check refuses, or that YAML changes, would give the default another key."""
    told = plugins.describe(kind, name)
    args = {f.name: f.default for f in told.fields if f.default is not plugins.REQUIRED}
    assert all(problem(args[f.name], f.kind) is None for f in told.fields if f.name in args)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in args.items()}
    cell = Cell(Spec("m"), Spec(name, told.version, plain), Spec("t"))
    again = yaml.safe_load(yaml.safe_dump(cell.to_json()["method"]["args"]))
    assert Cell(Spec("m"), Spec(name, told.version, again), Spec("t")).key == cell.key


def test_listing_imports_nothing_heavy():
    """`lacuna list` must answer at once on a login node."""
    code = (
        "import sys; from lacuna.results import plugins;"
        "[plugins.describe(k, n) for k in ('methods', 'tasks', 'ops', 'figures') for n in plugins.names(k)];"
        "sys.exit(bool({'torch', 'transformers', 'pandas', 'matplotlib', 'triton'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_has_its_neighbour():
    """A misspelt name must be answered with the right one."""
    with pytest.raises(ValueError, match="unknown method 'loky': did you mean 'loki'"):
        plugins.describe("methods", "loky")


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (0.25, Annotated[int | float, Share("x")], True),
        (1.5, Annotated[int | float, Share("x")], False),
        (0, Annotated[int | float, Share("x")], False),
        (64, Annotated[int | float, Share("x")], True),
        (True, Annotated[int | float, Share("x")], False),
        (None, Annotated[int | float, Share("x")] | None, True),
        (0.0, Annotated[float, Within(0, 1, open_low=True)], False),
        (1, Annotated[float, Within(0, 1)], True),
        ("1", int, False),
        (1.0, int, False),
        ("kv", Literal["kv", "query"], True),
        ("k", Literal["kv", "query"], False),
        ([0.1, 0.2], tuple[Annotated[float, Within(0, 1)], ...], True),
        ([0.1, 2.0], tuple[Annotated[float, Within(0, 1)], ...], False),
        ([], tuple[float, ...], False),
        ({}, Mapping, True),
    ],
)
def test_what_fits_an_annotation(value, kind, fits):
    """A value that slips through here fails hours later on a compute node, or worse, does not."""
    assert (problem(value, kind) is None) == fits


def test_lists_are_axes_unless_the_field_takes_one():
    """`depths: [0, 1]` is one value of needle, `k: [1, 2]` two budgets."""
    kinds = {f.name: f.kind for f in plugins.describe("tasks", "needle").fields}
    assert takes_list(kinds["depths"])
    assert not takes_list(kinds["length"])


def test_wrong_values_of_optional_arguments_are_told_in_words():
    """People would be told to give an `Annotated or nothing`."""
    from typing import Annotated

    from lacuna.results.fields import Within, problem

    assert problem(0, Annotated[int, Within(1)] | None) == "a number of at least 1 or nothing"
    assert problem("x", Annotated[int, Within(1)] | None) == "a whole number or nothing"
    assert (
        problem([0.5, 2], tuple[Annotated[float, Within(0, 1)], ...])
        == "a list of a number of at least 0 and at most 1"
    )
    assert problem(None, tuple[Annotated[int, Within(1)], ...] | None) is None


def test_labels_do_not_say_where_files_lie(tmp_path):
    """A line of progress would be wider than the screen, and tables differ between machines."""
    from lacuna.results.cell import Spec
    from lacuna.results.plugins import label

    spec = Spec("perplexity", args={"corpus": str(tmp_path / "wikitext2" / "wiki.test.raw.gz"), "window": 512})
    assert label("tasks", spec) == "perplexity corpus=wikitext2/wiki.test.raw.gz window=512"
