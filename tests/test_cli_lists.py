"""What there is to type, and what `lacuna list` says of it."""

import json

import pytest

from lacuna import __version__, cli
from lacuna.jobs.commands import parser
from lacuna.results import plugins


def every_command():
    actions = parser("0")._subparsers._group_actions
    return sorted(actions[0].choices)


def test_each_command_is_called():
    """A command could be typed that nothing answers, or be there and not be typed."""
    assert every_command() == sorted(cli.COMMANDS)


def test_version(outcome):
    """Nobody could say with which version a result was made."""
    assert outcome("--version") == (0, f"lacuna {__version__}\n", "")


@pytest.mark.parametrize("kind", plugins.FOLDERS)
def test_list(outcome, kind):
    """A plug-in would be there and not be found, or break the list of all others."""
    code, out, _ = outcome("list", kind, "--json")
    assert code == 0
    assert sorted(row["name"] for row in json.loads(out)) == sorted(plugins.names(kind))
    assert outcome("list", kind)[0] == 0


def test_list_says_the_version_of_an_op(outcome):
    """Every op would be listed as the first of its versions, whichever of them archived timings are of."""
    listed = {row["name"]: row["version"] for row in json.loads(outcome("list", "ops", "--json")[1])}
    assert listed["keep_rows"] == int(plugins.load("ops", "keep_rows").OP.version) > 1
    assert f"v{listed['keep_rows']} " in next(
        line for line in outcome("list", "ops")[1].splitlines() if line.startswith("keep_rows ")
    )


def test_list_says_what_an_argument_takes(outcome):
    """Nobody could write a sweep without reading the source."""
    rows = {row["name"]: row for row in json.loads(outcome("list", "methods", "--json")[1])}
    keep, rows = (field for field in rows["topk"]["fields"] if field["name"] in ("keep", "rows"))
    assert keep["type"].startswith("a share in (0, 1]")
    assert (keep["default"], rows["default"]) == (0.25, None)
