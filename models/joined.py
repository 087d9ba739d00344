"""Projections of one input as one matrix product: their weights become parts of one tensor, and nothing is held twice.

A decoded token makes three products for queries, keys and values and two in an MLP; the small ones leave most of a GPU
idle while they start and end.

Shapes: B texts, E inputs, F outputs of all together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.skinny_linear import OP as SKINNY_LINEAR
from .shard import SplitLinear


def joined(projections: Sequence[nn.Module], x_BE: Tensor) -> tuple[Tensor, ...]:
    """Project an input in one product.

    Args:
        projections: linear layers, also those that are split over ranks, of the same inputs. The first call moves their
            weights into one tensor, of which each keeps its part.
        x_BE: [B, E].

    Returns:
        What each layer gives, [B, its outputs]: columns of one [B, F].

    Raises:
        ValueError: one is another kind of layer, or some have a bias and others none.
    """
    weights, biases = _parts(projections, "weight"), _parts(projections, "bias")
    if len(weights) != len(projections) or len(biases) not in (0, len(projections)):
        kinds = ", ".join(sorted({type(p).__name__ for p in projections}))
        raise ValueError(f"projections of different make ({kinds}) are not fused; set layers: own")
    sizes = [weight.numel() // x_BE.shape[1] for weight in weights]
    bias = _whole(biases) if biases else None
    product_BF: Tensor = SKINNY_LINEAR(x_BE, _whole(weights).view(-1, x_BE.shape[1]), bias)
    return product_BF.split(sizes, -1)


def _parts(projections: Sequence[nn.Module], name: str) -> list[nn.Parameter]:
    plain = [p for p in projections if type(p) in (nn.Linear, SplitLinear)]  # what is derived may compute otherwise
    owners: list[Any] = [p.axonn if isinstance(p, SplitLinear) else p for p in plain]
    found = [getattr(owner, name, None) for owner in owners]
    return [part for part in found if isinstance(part, nn.Parameter)]


def _whole(parts: list[nn.Parameter]) -> Tensor:
    """All parts one behind the other, flat."""
    if not all(_behind(part, after) for part, after in pairwise(parts)):
        whole = torch.cat([part.detach().flatten() for part in parts])
        for part, place in zip(parts, whole.split([part.numel() for part in parts]), strict=True):
            part.data = place.view(part.shape)
    first = parts[0].detach()
    return first.as_strided((sum(part.numel() for part in parts),), (1,), first.storage_offset())


def _behind(part: Tensor, after: Tensor) -> bool:
    one_storage = part.untyped_storage().data_ptr() == after.untyped_storage().data_ptr()
    return one_storage and after.storage_offset() == part.storage_offset() + part.numel()
