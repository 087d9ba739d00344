"""Calibrated thresholds over the length of a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...results.fields import Needs, Within
from ..lm import Session
from ..observe import some_layers
from ..task import Outcome, Task

SIGNALS = ("pre", "post", "lowrank")


@dataclass(frozen=True)
class ThresholdCurves(Task):
    """Thresholds of some layers over the row's length, head by head, as a calibration left them.

    Top-Theta (arXiv 2502.08363): thresholds differ from head to head and with the length of the row, which is why they
    are kept in tables.

    Arguments: `calibration` that of the task thresholds; `layers` which (default three, spread evenly); `points` how
    many lengths at most, spread evenly, the shortest and the longest among them.
    """

    calibration: Annotated[Mapping[str, Any], Needs("thresholds")] = field(default_factory=dict)
    layers: tuple[Annotated[int, Within(0)], ...] | None = None
    points: Annotated[int, Within(2, 64)] = 16
    version: ClassVar[int] = 1

    def run(self, session: Session) -> Outcome:
        """Read the calibration; a sample for each layer has a list for each set of rows."""
        tensors = load_file(session.binding.artifacts["calibration"])
        every = sum(name.endswith(".lengths") for name in tensors)
        chosen = some_layers(self.layers, every)
        samples = [self._sample(tensors, layer) for layer in chosen]
        longest = [s["threshold"][n][-1] for s in samples for n in range(len(s["threshold"]))]
        ends = {"threshold_longest_min": min(longest), "threshold_longest_max": max(longest)}
        return Outcome({"layers": float(every), **ends}, samples)

    def _sample(self, tensors: Mapping[str, Tensor], layer: int) -> dict[str, Any]:
        signal = next(s for s in SIGNALS if f"layer.{layer}.{s}" in tensors)
        lengths, table = tensors[f"layer.{layer}.lengths"], tensors[f"layer.{layer}.{signal}"]
        at = torch.linspace(0, len(lengths) - 1, min(self.points, len(lengths))).round().long()
        found = [[float(f"{v:.5g}") for v in row] for row in table[:, at].tolist()]
        return {"layer": layer, "signal": signal, "length": lengths[at].tolist(), "threshold": found}
