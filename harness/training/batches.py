"""Batches of training text, each made of its number alone: a run that goes on, or on more ranks, sees the same ones.

Shapes: R rows, L tokens of a row.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .landmarks import Batch, Landmarks
from .plants import Plants
from .schedule import Part
from .segments import Ints
from .shards import Shards

AHEAD = 4  # batches that wait, ready, while the device works


@dataclass(frozen=True)
class Batches:
    """Rows at random places of the documents, with plants and landmarks.

    A row lies within one document; where a document is shorter than the row, it is filled with END, without weight.
    """

    shards: Shards
    seed: int
    plants: Plants
    landmarks: Landmarks | None = None

    def make(self, part: Part) -> Batch:
        """The batch of a part of a step; the same part gives the same batch, whoever asks and whenever."""
        dice = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, part.step, part.number))))
        hay, real = self._rows(part.rows, part.length + 1, dice)
        tokens, weights = hay, np.ones(hay.shape, np.float32)
        if part.planted:
            tokens, weights = self.plants.plant(hay, part.planted, dice)
        weights = np.where(real, weights, 0)[:, 1:].astype(np.float32)
        batch = Batch(tokens[:, :-1], tokens[:, 1:], weights)
        return batch if self.landmarks is None else self.landmarks.insert(batch, dice)

    def _rows(self, rows: int, length: int, dice: np.random.Generator) -> tuple[Ints, np.ndarray]:
        """Tokens [R, L] and which of them are a document's."""
        spot = dice.integers(self.shards.total, size=rows)
        document = np.searchsorted(self.shards.starts, spot, side="right") - 1
        first, end = self.shards.starts[document], self.shards.starts[document + 1]
        start = np.maximum(first, np.minimum(spot, end - length))
        tokens = np.zeros((rows, length), np.int64)  # END is token 0 of our own vocabularies; without weight anyhow
        held = np.minimum(end - start, length)
        for row in range(rows):
            tokens[row, : held[row]] = self.shards.take(int(start[row]), int(held[row]))
        return tokens, np.arange(length) < held[:, None]


@dataclass(frozen=True)
class Fed:
    """A batch as tensors on the device; see `Batch`."""

    ids: Tensor
    targets: Tensor
    weights: Tensor
    positions: Tensor | None
    landmarks: Tensor | None
    controlled: Tensor | None
    part: Part


def ahead(make: Callable[[Part], Batch], parts: Iterable[Part], device: torch.device) -> Iterator[Fed]:
    """Batches on the device, made in a thread beside the work and, for GPUs, copied from pinned memory.

    Raises:
        Exception: whatever `make` raised, where its batch would have come.
    """
    line: queue.Queue[tuple[Part, Batch] | BaseException | None] = queue.Queue(AHEAD)
    stop = threading.Event()

    def put(item: tuple[Part, Batch] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                line.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for part in parts:
                put((part, make(part)))
            put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the batch is awaited
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := line.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield _fed(item[1], item[0], device)
    finally:
        stop.set()
        thread.join()


def _fed(batch: Batch, part: Part, device: torch.device) -> Fed:
    def on(values: np.ndarray | None) -> Tensor | None:
        if values is None:
            return None
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    ids, targets, weights = on(batch.ids), on(batch.targets), on(batch.weights)
    assert ids is not None
    assert targets is not None
    assert weights is not None
    return Fed(ids, targets, weights, on(batch.positions), on(batch.landmarks), on(batch.controlled), part)
