"""Which way rooms look: read from the imports, so that a new file is held to it by being there."""

import ast
import fnmatch
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lacuna.results.plugins import ROOT

BELOW = {
    "results": set(),
    "kernels": {"results"},
    "models": {"kernels", "results"},
    "harness": {"models", "kernels", "results"},
    "jobs": {"harness", "models", "kernels", "results"},
    "analysis": {"results"},
}
DOORS = {
    "axonn": ["models/shard.py"],
    "matplotlib": ["analysis/*"],
    "mpi4py": ["harness/ranks.py"],
    "pandas": ["results/frame.py", "analysis/*", "cli.py"],
    "pynvml": ["harness/timing.py"],
    "submitit": ["jobs/submit.py"],
    "transformers": ["models/bind.py", "models/load.py", "models/shard.py", "harness/lm.py"],
    "triton": ["kernels/*/fused.py"],
    "yaml": ["jobs/*"],
}
TYPES_ONLY = {"models/shard.py", "harness/lm.py"}
WITHOUT_TORCH = ("results/*", "analysis/*")
FILES = [*sorted(p for room in BELOW for p in (ROOT / room).rglob("*.py")), ROOT / "cli.py"]
Import = tuple[int, tuple[str, ...]]


def name_of(path: Path) -> str:
    """The path from the root, as it is written everywhere here."""
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[Import]:
    """(line, parts of the module), those of the package itself with `lacuna` in front."""
    package = ("lacuna", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, tuple(alias.name.split("."))) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            yield from ((node.lineno, (*start, *module, alias.name)) for alias in node.names)


@pytest.mark.parametrize("path", FILES[:-1], ids=name_of)
def test_a_room_imports_only_what_lies_below_it(path):
    """A room that looks up, or sideways, can no longer be understood, tested or replaced without the other."""
    room = path.relative_to(ROOT).parts[0]
    own = [(line, parts) for line, parts in imports(path) if parts[0] == "lacuna"]
    wrong = [f"{name_of(path)}:{line} imports {'.'.join(parts)}" for line, parts in own
             if parts[1] not in {room, *BELOW[room]}]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_heavy_dependency_has_one_door(path):
    """An upgrade of a library would be an edit to many files instead of one."""
    here = name_of(path)
    wrong = [f"{here}:{line} imports {parts[0]}, whose door is {' or '.join(DOORS[parts[0]])}"
             for line, parts in imports(path)
             if parts[0] in DOORS and not any(fnmatch.fnmatch(here, door) for door in DOORS[parts[0]])]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize("name", sorted(TYPES_ONLY))
def test_outside_its_door_only_types_of_transformers_are_named(name):
    """The sharding or the tasks would come to depend on how models of transformers work inside."""
    named = {parts[-1] for _, parts in imports(ROOT / name) if parts[0] == "transformers"}
    assert named <= {"PreTrainedModel", "PreTrainedTokenizerBase"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_results_and_analysis_do_without_torch(path):
    """`list`, `status` and `report` would wait seconds for a library that they have no use for."""
    if any(fnmatch.fnmatch(name_of(path), pattern) for pattern in WITHOUT_TORCH):
        assert not [line for line, parts in imports(path) if parts[0] == "torch"]


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=name_of)
def test_no_room_is_imported_bare(path):
    """`import kernels` finds the Hub's package of that name, or a second copy of ours, or breaks transformers."""
    assert not [f"{name_of(path)}:{line}" for line, parts in imports(path) if parts[0] in BELOW]


def test_a_program_that_uses_everything_has_no_bare_room(tmp_path):
    """Two copies of a room in one process have two registries, two caches and exceptions that do not catch each other."""
    modules = "cli, jobs.sweep, jobs.submit, analysis.report, harness.run"
    code = "\n".join([f"import lacuna.{', lacuna.'.join(modules.split(', '))}, sys",
                      f"print([name for name in {sorted(BELOW)} if name in sys.modules])"])  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
