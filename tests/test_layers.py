"""Which way rooms look: read from the imports, so that a new file is held to it by being there."""

import ast
import fnmatch
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

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
    "datasets": ["harness/rows.py", "harness/lm_eval/*"],
    "lm_eval": ["harness/lm_eval/*"],
    "matplotlib": ["analysis/*"],
    "mpi4py": ["harness/ranks.py"],
    "pandas": ["results/frame.py", "results/archive.py", "analysis/*", "cli.py"],
    "pynvml": ["harness/timing.py"],
    "submitit": ["jobs/submit.py"],
    "transformers": ["models/bind.py", "models/load.py", "models/shard.py", "harness/lm.py", "harness/chat.py"],
    "triton": ["kernels/*/fused.py"],
    "yaml": ["jobs/*"],
}
TYPES_ONLY = ("models/shard.py", "harness/lm.py", "harness/chat.py")
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


def found(paths: Iterable[Path], is_wrong: Callable[[str, tuple[str, ...]], bool]) -> list[str]:
    """Every import that is wrong, as `file:line imports module`."""
    return [f"{name_of(path)}:{line} imports {'.'.join(parts)}"
            for path in paths for line, parts in imports(path) if is_wrong(name_of(path), parts)]  # fmt: skip


def is_at(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns fits the path."""
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def test_a_room_imports_only_what_lies_below_it():
    """A room that looks up, or sideways, can no longer be understood, tested or replaced without the other."""

    def looks_up(path, parts):
        room = path.split("/")[0]
        return parts[0] == "lacuna" and parts[1] not in {room, *BELOW[room]}

    assert found(FILES[:-1], looks_up) == []


def test_each_heavy_dependency_has_one_door():
    """An upgrade of a library would be an edit to many files instead of one."""
    assert found(FILES, lambda path, parts: parts[0] in DOORS and not is_at(path, DOORS[parts[0]])) == []


def test_outside_its_door_only_types_of_transformers_are_named():
    """The sharding or the tasks would come to depend on how models of transformers work inside."""
    types = {"PreTrainedModel", "PreTrainedTokenizerBase"}
    paths = [ROOT / name for name in TYPES_ONLY]
    assert found(paths, lambda _, parts: parts[0] == "transformers" and parts[-1] not in types) == []


def test_results_and_analysis_do_without_torch():
    """`list`, `status` and `report` would wait seconds for a library that they have no use for."""
    assert found(FILES, lambda path, parts: parts[0] == "torch" and is_at(path, ["results/*", "analysis/*"])) == []


def test_no_room_is_imported_bare():
    """`import kernels` finds the Hub's package of that name, or a second copy of ours, or breaks transformers."""
    tests = (ROOT / "tests").rglob("*.py")
    assert found([*FILES, *tests], lambda _, parts: parts[0] in BELOW) == []


def test_a_program_that_uses_everything_has_no_bare_room(tmp_path):
    """Two copies of a room in one process have two registries, two caches and exceptions that do not catch each other."""
    modules = "cli, jobs.sweep, jobs.submit, analysis.report, harness.run"
    code = "\n".join([f"import lacuna.{', lacuna.'.join(modules.split(', '))}, sys",
                      f"print([name for name in {sorted(BELOW)} if name in sys.modules])"])  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
