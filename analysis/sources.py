"""What a report is made of: records, and tables of `lacuna bench`, from several files or sweeps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from ..results import archive as archives
from ..results import frame as frames
from ..results.archive import Archive
from . import bench as benches
from .select import matches
from .study import Study
from .survey import choose


@dataclass(frozen=True)
class Sources:
    """Records and times of operations; either may be empty."""

    archive: Archive
    bench: pd.DataFrame

    def where(self, conditions: Sequence[str]) -> Sources:
        """Those records that meet every condition; raises ValueError as `select.where` does."""
        if not conditions:
            return self
        return replace(self, archive=self.archive.where(matches(self.archive.lean, conditions)))

    @functools.cached_property
    def study(self) -> Study:
        """What is shown of them (see `survey.choose`), computed once."""
        return Study(self.archive.load(choose(self.archive)), self.bench)


def of_frame(frame: pd.DataFrame) -> Sources:
    """Records that are in memory."""
    return Sources(archives.of_frame(frame), benches.none())


def read(path: Path) -> Sources:
    """What is in a file: records as `lacuna collect` writes them, or times as `lacuna bench -o` does.

    Raises:
        ValueError: it is neither.
    """
    if benches.is_bench(path):
        return Sources(archives.of_frame(frames.to_frame([])), benches.read(path))
    frames.expect(path)
    if path.suffix == ".parquet":
        return Sources(archives.open_parquet(path), benches.none())
    return of_frame(frames.read(path))


def together(several: Sequence[Sources]) -> Sources:
    """All of them as one."""
    filled = [one.archive for one in several if len(one.archive.lean)] or [several[0].archive]
    tables = [one.bench for one in several if len(one.bench)]
    return Sources(archives.join(filled), pd.concat(tables, ignore_index=True) if tables else benches.none())
