"""The bounds that the repository sets itself, counted."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

from lacuna import __version__
from lacuna.results.plugins import ROOT

ROOMS = ("analysis", "harness", "jobs", "kernels", "models", "results")
TEXTS = ("*.py", "*.md", "*.yaml", "*.cfg", "*.toml", "*.sh", "*.cff", "*.csv", "*.txt", "*.html", "ORIGIN")
HOUSES = r"(?<![\w.$}~])/(?:home|root|work|Users|mnt|scratch)/\w+"


def files(*patterns: str) -> Iterator[Path]:
    """Our own files, not what a checkout gathers (.venv, store, report)."""
    folders = [ROOT / name for name in (*ROOMS, "tests", "docs", ".ci")]
    for pattern in patterns:
        yield from sorted(ROOT.glob(pattern))
        yield from sorted(p for folder in folders for p in folder.rglob(pattern))


def lines_of(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    said = ast.get_docstring(function, clean=False)
    return function.end_lineno - function.lineno + 1 - (len(said.splitlines()) if said else 0)


def test_files_are_short():
    """A file of more than 300 lines is about more than one thing."""
    found = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in files("*.py")}
    assert {name: count for name, count in found.items() if count > 300} == {}


def test_functions_are_short():
    """A function of more than 40 lines (a Triton kernel: 120) cannot be read at a glance."""
    long = []
    for path in files("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            most = 120 if "triton.jit" in map(ast.unparse, node.decorator_list) else 40
            if lines_of(node) > most:
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines_of(node)} lines")
    assert long == []


def test_no_drawer_for_everything():
    """A file called utils.py holds what nobody found the name of."""
    assert [p for p in files("*.py") if p.stem in ("util", "utils", "helpers", "misc", "common")] == []


def test_rooms_have_no_init_file():
    """A regular package `kernels` in the working directory breaks the import of transformers."""
    assert [room for room in ROOMS if (ROOT / room / "__init__.py").exists()] == []
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_each_test_says_what_it_protects():
    """A test that fails without saying what is broken is mended by changing the test."""
    silent = [f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
              for path in files("test_*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
              if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
              and not ast.get_docstring(node)]  # fmt: skip
    assert silent == []


def test_no_path_of_a_machine():
    """A result or a document would lead into a folder that only one machine has."""
    house = re.compile(HOUSES)
    found = [f"{path.relative_to(ROOT)}: {hit[0]}" for path in files(*TEXTS, "Makefile", "run", "LICENSE", "NOTICE")
             for hit in house.finditer(path.read_text(encoding="utf-8"))]  # fmt: skip
    assert found == []


def test_each_ignored_rule_has_its_reason():
    """A rule that is off without a reason stays off when the reason is gone."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ruff = tomllib.loads(text)["tool"]["ruff"]["lint"]
    lines = text.splitlines()
    for rule in (*ruff["ignore"], *ruff["per-file-ignores"]):
        line = next(line for line in lines if f'"{rule}"' in line)
        assert re.search(r"\s#\s+\w", line), f"pyproject.toml says no reason for {rule}"


def test_one_version():
    """A paper would cite another version than the records name."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert f"version = {__version__}\n" in setup
    assert citation["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_citation_is_valid():
    """GitHub and Zenodo show nothing of a citation file that lacks what CFF 1.2.0 requires."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert all("name" in author or {"family-names", "given-names"} <= author.keys() for author in citation["authors"])
    assert citation["license"] == "Apache-2.0"
