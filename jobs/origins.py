"""Kernels timed on keys of several origins: normal numbers, or models of the zoo over real text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..kernels.bench import rows, rows_of_keys
from ..results.store import Store
from .inputs import Inputs

if TYPE_CHECKING:
    import torch

    from ..kernels.op import Case

RANDOM = "random"


def rows_of(
    keys: Sequence[str], names: Sequence[str], device: torch.device, cases: Sequence[Case], store: Path
) -> Iterator[dict[str, Any]]:
    """Rows of the bench on each kind of keys in turn; every model is found before anything is timed.

    Args:
        keys: "random", and names of models.
        names: of operations and pipelines.
        device: where.
        cases: shapes instead of the operations' own.
        store: where a trained model may lie.

    Raises:
        ValueError: there is no model of a name, or no operation.
    """
    models = [name for name in keys if name != RANDOM]
    specs = {name: Inputs(Path.cwd(), Store(store)).zoo(name) for name in models}
    if RANDOM in keys:
        yield from rows(names, device, cases)
    for name, spec in specs.items():
        from ..harness.real_keys import RealKeys  # noqa: PLC0415 - transformers, which random keys do not need

        yield from rows_of_keys(name, RealKeys(spec, device), names, device, cases)
