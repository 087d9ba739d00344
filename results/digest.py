"""Digests of the files that a result depends on: models, corpora."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from .plugins import FOLDERS
from .store import write_atomically


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 16 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def tree_digest(files: Iterable[Path], memory: Path) -> str:
    """One digest of the names and contents of files.

    Contents are hashed once: `memory` is a JSON file that remembers a digest for (path, size, time of change), since
    hashing the weights of a 70B model at each `plan` would take minutes.
    """
    known = _remembered(memory)
    before, total = dict(known), hashlib.sha256()
    for path in sorted(files):
        stat = path.stat()
        mark = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        known[mark] = known.get(mark) or file_digest(path)
        total.update(f"{path.name}:{known[mark]}\n".encode())
    if known != before:
        with contextlib.suppress(OSError):  # what cannot be remembered is hashed again
            write_atomically(memory, json.dumps(known, indent=0).encode())
    return total.hexdigest()[:16]


def source_digest(root: Path) -> str:
    """One digest of every module of a package: names below its root, and contents.

    It says which code made a number where there is no revision to name: in an installed wheel, or a copied checkout.
    """
    total = hashlib.sha256()
    rooms = sorted({Path(folder).parts[0] for folder in FOLDERS.values()} | {"results"})
    tops = (path for path in root.glob("*.py") if path.name != "setup.py")  # which stays behind when it has installed
    modules = [*tops, *(path for room in rooms for path in (root / room).rglob("*.py"))]
    for path in sorted(modules, key=lambda path: path.relative_to(root).as_posix()):
        total.update(f"{path.relative_to(root).as_posix()}:{file_digest(path)}\n".encode())
    return total.hexdigest()[:16]


def _remembered(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
