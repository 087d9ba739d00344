"""The documents of training text, one at a time: a corpus may be larger than the memory."""

from __future__ import annotations

import gzip
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ...results.plugins import ROOT

SHIPPED = ROOT / "harness" / "data"


def documents(corpora: Sequence[str]) -> Iterator[str]:
    """Texts of corpora in turn: names in harness/data, .txt, .jsonl(.gz) with a field `text`, .tar(.gz, .xz) of .txt.

    Raises:
        ValueError: a corpus is missing, damaged, or of a kind that is not read.
    """
    for name in corpora:
        shipped = SHIPPED / f"{name}.jsonl.gz"
        path = shipped if shipped.exists() else Path(name)
        if not path.is_file():
            raise ValueError(f"no corpus {name!r}: give a name in harness/data or the path of a text file")
        try:
            yield from _texts(path)
        except (OSError, EOFError, lzma.LZMAError, tarfile.TarError, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read to its end ({error}): fetch it again") from error


def _texts(path: Path) -> Iterator[str]:
    kinds = path.suffixes
    if ".tar" in kinds:
        yield from _of_tar(path)
    elif ".jsonl" in kinds:
        with gzip.open(path, "rt", encoding="utf-8") if kinds[-1] == ".gz" else path.open(encoding="utf-8") as lines:
            yield from _of_lines(path, lines)
    elif kinds[-1:] == [".txt"]:
        yield path.read_text(encoding="utf-8")
    else:
        raise ValueError(f"{path} is no training text: expected .txt, .jsonl, .jsonl.gz, .tar, .tar.gz or .tar.xz")


def _of_tar(path: Path) -> Iterator[str]:
    with tarfile.open(path, "r|*") as archive:  # as a stream: members come in the file's order
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(".txt") else None
            if content is not None:
                yield content.read().decode("utf-8")


def _of_lines(path: Path, lines: TextIO) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: expected a JSON object with the field `text`") from error
        yield str(text)
