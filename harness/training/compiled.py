"""A training's kernels on a GPU: layers compiled once for all, and a part's passes launched as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Fed

WARM_UPS = 3  # kernels are compiled and loaded in the first, which a capture cannot do


@contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """The model's layers compiled one by one: they share their code, so that it is compiled once for all of them.

    Afterwards they are as they were, and nothing compiled is left that would count against another training's.
    """
    layers = list(model.base_model.layers)
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
        torch.compiler.reset()


@dataclass(frozen=True)
class _Graph:
    """A captured part: what it reads, what it gives."""

    graph: torch.cuda.CUDAGraph
    fed: Fed
    sums: Tensor


class Replayed:
    """`work` on batches of one shape after another, each captured once as a CUDA graph and then replayed.

    A small model's kernels take less time than the host needs to launch them one by one. Gradients are added to those
    that are there, which stay where they are: zero them in place. A batch of a new shape must be the first of a step.
    """

    def __init__(self, work: Callable[[Fed], Tensor], parameters: list[nn.Parameter]) -> None:
        self._work, self._parameters = work, parameters
        self._known: _Graph | None = None

    def __call__(self, fed: Fed) -> Tensor:
        """What `work` gives, until the next call."""
        if self._known is None or self._known.fed.ids.shape != fed.ids.shape:
            self._known = None  # its memory is for the next one
            self._known = self._captured(fed)
        known = self._known
        for name in _tensors(fed):
            getattr(known.fed, name).copy_(getattr(fed, name))
        known.graph.replay()
        return known.sums

    def _captured(self, fed: Fed) -> _Graph:
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        own = replace(fed, **{name: getattr(fed, name).clone() for name in _tensors(fed)})
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._work(own)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # of this thread alone: what watches over the collectives asks the device from one of its own
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            sums = self._work(own)
        torch._foreach_zero_([p.grad for p in self._parameters if p.grad is not None])
        return _Graph(graph, own, sums)


def _tensors(fed: Fed) -> list[str]:
    return [field.name for field in fields(fed) if isinstance(getattr(fed, field.name), Tensor)]
