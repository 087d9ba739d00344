"""Rewrites the blocks of a Markdown file that name the command they come from.

A block begins with a line `<!-- lacuna COMMAND -->` and ends with `<!-- end -->`. `report FILE` gives the table of an
archive, `ops FILE` those of a run of `lacuna bench`, `list KIND` a line for each plug-in, with the papers that a
method's file names. Files are named from the folder of the Markdown file.

    python -m lacuna.analysis.splice README.md   # make readme
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ..results.frame import read
from ..results.plugins import describe, names, source
from ..results.store import write_atomically
from ..results.worded import worded
from . import bench, op_table
from .points import points
from .render import to_markdown
from .table import lay_out, long_cells

BLOCK = re.compile(r"(<!-- lacuna (?P<command>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
PAPER = re.compile(r"arXiv (\d{4}\.\d{5})")
ABOUT = re.compile(r"^In brackets: 95% .*\n\n", re.MULTILINE)


def spliced(text: str, root: Path) -> str:
    """The text with every block as its command gives it now; paths in commands start from `root`.

    Raises:
        ValueError: a block names another command, or a file that is not there.
    """

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}\n{_answer(found['command'], root)}\n{found[3]}"

    return _said_once(BLOCK.sub(block, text))


def _answer(command: str, root: Path) -> str:
    verb, subject, *_ = [*shlex.split(command), "", ""]
    if verb not in ANSWERS:
        raise ValueError(f"a block says `lacuna {command}`, expected one of: {', '.join(ANSWERS)}")
    return ANSWERS[verb](subject, root)


def _table(file: str, root: Path) -> str:
    return to_markdown(lay_out(points(read(root / file)), long_cells))


def _ops(file: str, root: Path) -> str:
    return op_table.to_markdown(bench.read(root / file))


def _plugins(kind: str, root: Path) -> str:
    del root
    return "".join(f"- `{name}`: {_about(kind, name)}{_papers(kind, name)}\n" for name in names(kind))


def _about(kind: str, name: str) -> str:
    if kind not in ("models", "sites"):
        return describe(kind, name).summary
    lines = source(kind, name).read_text(encoding="utf-8").splitlines()
    said = (line.removeprefix("text: ") for line in lines if line.startswith("text: "))
    return next(said, lines[0].lstrip("# "))


def _papers(kind: str, name: str) -> str:
    if kind != "methods":
        return ""
    numbers = dict.fromkeys(PAPER.findall(source(kind, name).read_text(encoding="utf-8")))
    return "".join(f" [arXiv {number}](https://arxiv.org/abs/{number})" for number in numbers)


def _said_once(text: str) -> str:
    """What the columns mean stands below the last of the tables that say it."""
    for about in set(ABOUT.findall(text)):
        text = text.replace(about, "", text.count(about) - 1)
    return text


ANSWERS: Mapping[str, Callable[[str, Path], str]] = {"report": _table, "ops": _ops, "list": _plugins}


def main(paths: list[str]) -> int:
    """Rewrite files in place: 0 they are, 2 one of them cannot be, or none was named."""
    try:
        for path in map(Path, paths):
            write_atomically(path, spliced(path.read_text(encoding="utf-8"), path.resolve().parent).encode())
    except (ValueError, OSError) as error:
        print(f"splice: {worded(error)}", file=sys.stderr)
        return 2
    if not paths:
        print("splice: which files? e.g. README.md", file=sys.stderr)
    return 0 if paths else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
