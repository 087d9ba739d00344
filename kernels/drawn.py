"""Where an operation's queries, keys and values come from: normal numbers, or a source such as a model over real text.

Normal numbers spread the rows that are chosen evenly, and have no leading columns; those of a model do neither.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R leading columns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .op import Case, Op
from .visible import draw


class Drawn(NamedTuple):
    """A cache, and one query of each sequence.

    Attributes:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys, contiguous.
        v_BGSD: (B, G, S, D) values, contiguous.
    """

    q_BHD: torch.Tensor
    k_BGSD: torch.Tensor
    v_BGSD: torch.Tensor


Source = Callable[[Case, torch.device, int], Drawn]


@dataclass
class _Asked:
    source: Source
    times: int = 0


_SOURCE: ContextVar[_Asked | None] = ContextVar("source", default=None)


@contextmanager
def drawn_from(source: Source) -> Iterator[None]:
    """Draw what operations are tested and timed on from a source, for a while.

    Args:
        source: (case, device, seed) -> a cache of the case's shape and dtype; the leading columns of its keys are those
            in which they vary most.

    Yields:
        Nothing.
    """
    token = _SOURCE.set(_Asked(source))
    try:
        yield
    finally:
        _SOURCE.reset(token)


def asked() -> int | None:
    """Count how often the source was asked: inputs of an operation that does not look at keys are no source's.

    Returns:
        The count; nothing where numbers are normal.
    """
    asked = _SOURCE.get()
    return None if asked is None else asked.times


def draw_cache(case: Case, device: torch.device, seed: int) -> Drawn:
    """Draw queries, keys and values.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The three.
    """
    asked = _SOURCE.get()
    if asked is None:
        return normal(case, device, seed)
    asked.times += 1
    return asked.source(case, device, seed)


def normal(case: Case, device: torch.device, seed: int) -> Drawn:
    """Draw queries, keys and values of normal numbers.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The three.
    """
    cache = (case.batch, case.kv_heads, case.rows, case.head_dim)
    q_BHD = draw((case.batch, case.q_heads, case.head_dim), case, device, seed + 1)
    return Drawn(q_BHD, draw(cache, case, device, seed + 2), draw(cache, case, device, seed + 3))


def looks_at_keys(op: Op) -> bool:
    """Tell whether the inputs of an operation depend on keys: one that moves rows takes as long on any.

    Args:
        op: The operation.

    Returns:
        Whether it asks a source for the inputs of its first case.
    """
    with drawn_from(normal):
        op.make(op.cases[0], torch.device("cpu"), 0)
        return bool(asked())


def draw_leading(case: Case, device: torch.device, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the leading columns of queries and keys, stored apart.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        (B, H, R) and (B, G, S, R).
    """
    if _SOURCE.get() is not None:
        drawn = draw_cache(case, device, seed)
        return drawn.q_BHD[..., : case.low_dims].contiguous(), drawn.k_BGSD[..., : case.low_dims].contiguous()
    q_BHR = draw((case.batch, case.q_heads, case.low_dims), case, device, seed + 1)
    return q_BHR, draw((case.batch, case.kv_heads, case.rows, case.low_dims), case, device, seed + 2)
