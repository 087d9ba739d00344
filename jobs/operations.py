"""Kernels verified and timed, as the command line asks for them."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..kernels.clock import refuse_other_gpu
from ..kernels.grid import decode_ops, grid_cases, write_csv
from ..kernels.pipeline import STAGES
from ..kernels.verify import verify_all
from ..results import plugins
from ..results.fields import near
from .origins import rows_of
from .say import say_row

GRID: dict[str, Any] = {"batch": [16], "part": [4], "heads": "32x8", "head_dim": 128}  # what goes with --rows


def device(name: str | None) -> torch.device:
    """The device that was named, else a GPU where there is one.

    Raises:
        ValueError: a GPU was named and there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ValueError("no CUDA GPU is visible: use --device cpu")
    return torch.device(name or ("cuda" if there else "cpu"))


def verified(args: Namespace) -> Iterator[dict[str, Any]]:
    """Each verdict, printed; of all operations where none is named.

    Raises:
        ValueError: there is no operation of a name, or no such device.
    """
    where, names = device(args.device), _named(args.op, plugins.names("ops"))
    if where.type == "cpu":  # Triton reads this when it is imported, which the first fused kernel does
        os.environ.setdefault("TRITON_INTERPRET", "1")
    yield from map(say_row, verify_all(names, where))


def timed(args: Namespace) -> list[dict[str, Any]]:
    """Each time, printed, and written to `--output` as it is measured.

    Raises:
        ValueError: there is no operation of a name, no such device, or a shape that is none.
    """
    where = device(args.device)
    refuse_other_gpu(args.gpu, where)
    given = {name: getattr(args, name) for name in GRID if getattr(args, name) is not None}
    if given and not args.rows:
        word = next(iter(given)).replace("_", "-")
        raise ValueError(f"--{word} sets nothing without --rows, the lengths of the caches")
    shape = GRID | given
    cases: Sequence[Any] = ()
    if args.rows:
        cases = grid_cases(shape["batch"], args.rows, shape["part"], shape["heads"], shape["head_dim"])
    names = _named(args.op, [*plugins.names("ops"), *STAGES]) if args.op else _usual(where, cases)
    told = map(say_row, rows_of(args.keys, names, where, cases, args.store))
    return write_csv(told, args.output) if args.output else list(told)


def _usual(where: torch.device, cases: Sequence[Any]) -> list[str]:
    """What is timed where nothing is named: a pipeline on a GPU alone."""
    ops = decode_ops(plugins.names("ops")) if cases else plugins.names("ops")
    return [*ops, *(STAGES if where.type == "cuda" else ())]


def _named(asked: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in asked:
        if name not in known:
            raise ValueError(f"unknown op {name!r}: {near(name, known)}")
    return list(asked or known)
