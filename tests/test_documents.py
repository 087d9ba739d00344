"""What the documents say is what the program does."""

import ast
import re
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from lacuna.analysis.sources import read as read_archive
from lacuna.analysis.splice import main, spliced
from lacuna.jobs.commands import parser
from lacuna.jobs.site import Site, read_site
from lacuna.jobs.sweep import read
from lacuna.results import plugins
from lacuna.results.cell import Cell
from lacuna.results.fields import problem
from lacuna.results.plugins import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/**/*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = parser("0")._subparsers._group_actions[0].choices
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def yaml_blocks(name):
    return re.findall(r"```yaml\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def test_readme_is_what_its_commands_give():
    """Tables and lists would show another program, or other records, than those that are here: run `make readme`."""
    assert spliced(README, ROOT) == README


def test_tables_of_kernels_are_what_their_archives_give():
    """A time in docs/kernels.md would be of another run than the one that it names: run `make readme`."""
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert "<!-- lacuna ops " in text
    assert spliced(text, ROOT / "docs") == text


def test_every_archive_can_be_drawn_again():
    """`make figures` would stop at a table that is none of records, and the figures behind it could change unseen."""
    archives = [p for p in (ROOT / "results" / "archive").iterdir() if p.suffix in (".csv", ".parquet")]
    assert archives
    assert all(len(one.archive.lean) + len(one.bench) for one in map(read_archive, archives))


def test_splice_rewrites_what_is_between_the_marks_alone(tmp_path):
    """Text around a table would be lost, or an old table stay."""
    text = "a\n<!-- lacuna list models -->\nold\n<!-- end -->\nb\n"
    new = spliced(text, tmp_path)
    assert new.startswith("a\n<!-- lacuna list models -->\n\n- `pocket`: ")
    assert new.endswith("\n\n<!-- end -->\nb\n")
    assert spliced(new, tmp_path) == new


def test_splice_without_its_file_is_one_sentence(capsys, tmp_path):
    """`make readme` in a wrong folder would end in a traceback, or in silence with nothing done."""
    assert [main([str(tmp_path / "none.md")]), main([])] == [2, 2]
    assert (
        capsys.readouterr().err
        == f"splice: {tmp_path}/none.md: No such file or directory\nsplice: which files? e.g. README.md\n"
    )


@pytest.mark.parametrize("command", ["bench", "report no.csv", "list nonsense"])
def test_splice_refuses_what_it_cannot_answer(tmp_path, command):
    """A wrong mark would leave its block as it was, and nobody would see."""
    with pytest.raises((ValueError, KeyError)):
        spliced(f"<!-- lacuna {command} -->\n<!-- end -->\n", tmp_path)


def test_each_command_is_documented():
    """A command that the README does not name is not found."""
    assert [name for name in COMMANDS if f"| `lacuna {name}" not in README] == []


def test_each_command_in_a_document_exists():
    """Who follows a document would be told that there is no such command."""
    for path in DOCUMENTS:
        code = "\n".join(map("".join, re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", path.read_text(), re.DOTALL)))
        assert set(re.findall(r"\blacuna ([a-z]+)\b", code)) <= COMMANDS.keys(), path.name
        assert set(re.findall(r"^make ([a-z]+)", code, re.MULTILINE)) <= set(TARGETS), path.name


def test_each_target_is_documented():
    """A target that nobody describes is typed by nobody, and breaks unseen."""
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    head = (ROOT / "Makefile").read_text(encoding="utf-8").split("\n\n")[0]
    told = {"demo", "test", "lint", "readme", "archive"}
    assert all(f"make {name}" in text and f"# make {name}" in head for name in told)
    assert told <= set(TARGETS)


@pytest.mark.parametrize("kind", plugins.FOLDERS)
def test_each_plugin_is_listed(kind):
    """A plug-in that the README does not list is not found: run `make readme`."""
    block = re.search(rf"<!-- lacuna list {kind} -->(.*?)<!-- end -->", README, re.DOTALL)
    assert re.findall(r"^- `([\w-]+)`: \S", block[1], re.MULTILINE) == plugins.names(kind)


def test_each_paper_is_linked():
    """Who uses a method would not learn whose it is."""
    for name in plugins.names("methods"):
        text = plugins.source("methods", name).read_text(encoding="utf-8")
        numbers = set(re.findall(r"arXiv (\d{4}\.\d{5})", text))
        assert numbers or name == "full", f"{name} does not say where it comes from"
        assert all(f"(https://arxiv.org/abs/{number})" in README for number in numbers)


@pytest.mark.parametrize("number", range(len(yaml_blocks("docs/sweeps.md"))))
def test_each_example_of_a_sweep_is_read(tmp_path, number):
    """The grammar would be learned from a file that lacuna refuses."""
    path = tmp_path / f"example{number}.yaml"
    path.write_text(yaml_blocks("docs/sweeps.md")[number], encoding="utf-8")
    assert read(path, tmp_path / "store").cells


def test_the_readmes_sweep_is_read(tmp_path):
    """The first sweep that anybody types would fail."""
    (tmp_path / "first.yaml").write_text(yaml_blocks("README.md")[0], encoding="utf-8")
    assert len(read(tmp_path / "first.yaml", tmp_path / "store").cells) == 9


def test_the_example_of_a_site_is_read(tmp_path):
    """A site copied from the document would be refused."""
    (tmp_path / "mine.yaml").write_text(yaml_blocks("docs/sites.md")[0], encoding="utf-8")
    assert read_site(str(tmp_path / "mine.yaml")).ranks_per_node == 4


def test_each_place_on_a_cells_way_exists():
    """The walk through the code would name files and functions that are gone."""
    text = (ROOT / "docs" / "cell.md").read_text(encoding="utf-8")
    pairs = re.findall(r"`([\w/]+\.py)`\s+\(`([\w.]+)`", text)
    assert len(pairs) > 20
    for file, name in pairs:
        names = {n.name for n in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
                 if isinstance(n, (ast.FunctionDef, ast.ClassDef))}  # fmt: skip
        assert set(name.split(".")) <= names, f"{file} has no {name}"
    assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_each_file_that_a_document_names_exists(path):
    """A link or a path would lead nowhere."""
    text = path.read_text(encoding="utf-8")
    links = [name for name in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in name]
    assert [name for name in links if not (path.parent / name).exists()] == []
    paths = re.findall(r"`((?:analysis|harness|jobs|kernels|models|results|tests|docs)/[\w/.-]+\.\w+)`", text)
    assert [name for name in paths if "NAME" not in name and not (ROOT / name).exists()] == []


def test_documents_are_linked():
    """A document that the README does not link is read by nobody."""
    assert [p.name for p in (ROOT / "docs").glob("*.md") if f"(docs/{p.name})" not in README] == []
    assert Path(ROOT / "docs/figures/accuracy_density.svg").stat().st_size < 200_000


def messages():
    """What the program says: (file, string) of every string that is no docstring."""
    for room in ("models", "harness", "jobs", "results", "kernels", "analysis"):
        for path in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                    yield path.name, node.value


def test_advice_names_arguments_that_there_are():
    """A message that says `set engine: eager` where the value is `dynamic` sends its reader into the next error."""
    known = {"device": [get_type_hints(Cell)["device"]], "launcher": [get_type_hints(Site)["launcher"]]}
    for kind in ("methods", "tasks"):
        for plugin in (plugins.describe(kind, name) for name in plugins.names(kind)):
            for field in plugin.fields:
                known.setdefault(field.name, []).append(field.kind)
    advice = [
        (file, name, value)
        for file, text in messages()
        for name, value in re.findall(r"(?:set |take |leave |give |`)`?([a-z_]+): `?([a-z0-9_.]+)", text)
    ]
    assert len(advice) > 12
    for file, name, value in advice:
        given = yaml.safe_load(value)
        assert any(problem(given, kind) is None for kind in known.get(name, [])), f"{file}: {name}: {value}"
