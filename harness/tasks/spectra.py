"""How many dimensions the keys of each head need, and how their variance falls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...results.fields import Needs, Within
from ..lm import Session
from ..task import Outcome, Task

MOST_COMPONENTS = 24  # of a spectrum, evenly on a logarithmic scale: a record stays small


@dataclass(frozen=True)
class Spectra(Task):
    """Rank of the keys at a share of their variance by layer and head, and their eigen-spectra by layer.

    Rank: the least number of principal components that hold `variance` of it (Loki, arXiv 2406.02542, section 3: 90%).
    Spectrum: share of the variance of the i-th component, the mean over a layer's heads and the least and most of them.

    Arguments: `pca` the calibration whose keys these are (its corpus, and whether before or after the rotary
    embedding); `variance` the share to reach.
    """

    pca: Annotated[Mapping[str, Any], Needs("pca")] = field(default_factory=dict)
    variance: Annotated[float, Within(0, 1, open_low=True)] = 0.9
    version: ClassVar[int] = 1

    def run(self, session: Session) -> Outcome:
        """Read the calibration; a sample for each layer."""
        tensors = load_file(session.binding.artifacts["pca"])
        layers = sum(name.endswith(".variance") for name in tensors)
        samples = [self._sample(layer, tensors[f"layer.{layer}.variance"].double()) for layer in range(layers)]
        ranks = torch.tensor([sample["rank"] for sample in samples]).double()
        found = {"rank_mean": ranks.mean(), "rank_min": ranks.min(), "rank_max": ranks.max()}
        return Outcome({name: float(value) for name, value in found.items()}, samples)

    def _sample(self, layer: int, shares_GD: Tensor) -> dict[str, Any]:
        at = components(shares_GD.shape[1])
        some = shares_GD[:, at - 1]
        ends = {"mean": some.mean(0), "least": some.amin(0), "most": some.amax(0)}
        shown = {name: [float(f"{v:.4g}") for v in values.tolist()] for name, values in ends.items()}
        return {"layer": layer, "rank": rank(shares_GD, self.variance), "component": at.tolist(), **shown}


def rank(shares_GD: Tensor, variance: float) -> list[int]:
    """The least number of components whose shares add up to `variance`, of each head."""
    reached = shares_GD.cumsum(1) >= variance - 1e-9  # shares are stored in float32: all of them may add up to less
    return torch.where(reached.any(1), reached.int().argmax(1) + 1, shares_GD.shape[1]).tolist()


def components(size: int) -> Tensor:
    """Numbers from 1 to `size`, at most so many, the first ones and the last among them."""
    if size <= MOST_COMPONENTS:
        return torch.arange(1, size + 1)
    steps = torch.logspace(0, math.log10(size), MOST_COMPONENTS, dtype=torch.float64)
    return steps.round().long().unique()
