"""Draws the figures of every archive again, and says which are not what they were, byte for byte.

    python -m lacuna.analysis.redraw results/archive report/archive            # make figures
    python -m lacuna.analysis.redraw results/archive report/archive --accept   # write down what they are now

Files carry no time and no random id, so equal records give equal bytes under equal versions of matplotlib and its fonts
(constraints.txt). What they were is in `figures.sha256` of the archives' folder, a line for each file.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..results.store import write_atomically
from ..results.worded import worded
from .report import drawn
from .sources import read

DIGESTS = "figures.sha256"


def redraw(archives: Path, folder: Path) -> dict[str, str]:
    """Write `ARCHIVE/FIGURE.{pdf,png,svg}` for each archive; the digest of each file by its path.

    Raises:
        ValueError: there is no archive, or one cannot be read.
    """
    paths = sorted(p for p in archives.iterdir() if p.suffix in (".csv", ".parquet"))
    if not paths:
        raise ValueError(f"{archives} holds no archive (.csv or .parquet)")
    found = {}
    for path in paths:
        for name, data in drawn(read(path)).items():
            place = f"{path.stem}/{Path(name).name}"
            write_atomically(folder / place, data)
            found[place] = hashlib.sha256(data).hexdigest()
    return found


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each file that is new, gone or another."""
    yield from (f"new: {name}" for name in now if name not in then)
    yield from (f"gone: {name}" for name in then if name not in now)
    yield from (f"another: {name}" for name in now if then.get(name, now[name]) != now[name])


def digests(path: Path) -> dict[str, str]:
    """The digests of a file as sha256sum writes it; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _parser() -> argparse.ArgumentParser:
    said = (__doc__ or "").split("\n", 1)[0]
    parser = argparse.ArgumentParser(prog="python -m lacuna.analysis.redraw", description=said)
    parser.add_argument("archives", type=Path, help="the folder of archives (.csv, .parquet)")
    parser.add_argument("folder", type=Path, help="where the figures go: ARCHIVE/FIGURE.{pdf,png,svg}")
    parser.add_argument("--accept", action="store_true", help=f"write what they are now to {DIGESTS} of the archives")
    return parser


def main(arguments: list[str]) -> int:
    """Redraw and compare: 0 all are what they were (or accepted), 1 some are not, 2 what was asked for is not there."""
    args = _parser().parse_args(arguments)
    folder, known = args.folder, args.archives / DIGESTS
    try:
        now = redraw(args.archives, folder)
    except (ValueError, OSError) as error:
        print(f"redraw: {worded(error)}", file=sys.stderr)
        return 2
    if args.accept:
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(now.items()))
        write_atomically(known, text.encode())
    wrong = list(differences(digests(known), now))
    print("\n".join([*wrong, f"{len(now)} files in {folder}, {len(wrong)} not what they were"]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
