"""Feature maps: phi with phi(q) . phi(k) near exp(q . k), so that sums over keys fit a state of fixed size.

A map is one file in models/feature_maps, named like its one public class; nothing else knows of it.

Shapes: B batch, G key/value heads, N rows, D head dimension, F features.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from .memory import Site

TRAINED = "trained"  # the argument of a method whose artifact holds a map's weights
Weights = Mapping[str, Tensor]


class Features(NamedTuple):
    """Features of rows: `value` [B, G, N, F] times exp(`log` [B, G, N])."""

    value: Tensor
    log: Tensor


class Centre(NamedTuple):
    """What keys are expanded around, for each query row: a fixed `anchor` plus `offset`, both [B, G, N, D]."""

    anchor: Tensor
    offset: Tensor


@dataclass(frozen=True)
class FeatureMap(ABC):
    """Base of all maps. Rows come in fp32, multiplied by the square root of the factor of q . k.

    Attributes:
        width: the size that a map's file describes; None for its default.
        seed: of what it draws.

    Class attributes:
        trained: whether its weights come from the task feature_maps.
        centres: whether it can expand around the mean of the keys; then `keys` gets rows less the anchor.
    """

    width: int | None = None
    seed: int = 0
    trained: ClassVar[bool] = False
    centres: ClassVar[bool] = False

    @abstractmethod
    def features(self, head_dim: int) -> int:
        """How many features a row has."""

    @abstractmethod
    def keys(self, k_BGND: Tensor, weights: Weights) -> Features:
        """Features of keys."""

    @abstractmethod
    def queries(self, q_BGND: Tensor, weights: Weights, centre: Centre | None) -> Features:
        """Features of queries; where keys lack an anchor, `centre` says around what to expand."""

    def weights(self, site: Site) -> Weights:
        """Tensors [G, ...] in fp32 that `keys` and `queries` take for this rank's heads; default none."""
        del site
        return {}


class Fixed(FeatureMap):
    """A map whose size is the head dimension's."""

    def __post_init__(self) -> None:
        if self.width is not None:
            raise ValueError(f"{name_of(self)}: its size follows from the head dimension: leave width out")


class Trained(FeatureMap):
    """A map whose weights, one set for each layer and key/value head, are learned by the task feature_maps.

    One of them is `scale` [G, 1], the logarithm of a factor of the keys' features.
    """

    trained: ClassVar[bool] = True

    @abstractmethod
    def start(self, heads: int, head_dim: int, generators: list[torch.Generator]) -> dict[str, Tensor]:
        """Weights [G, ...] to start from, drawn for each head from its own generator."""

    def weights(self, site: Site) -> Weights:
        """What was learned for this rank's heads; zero heads get zeros.

        Raises:
            ValueError: the artifact is of another model, or of another map.
        """
        mark = f"layer.{site.layer}."
        with safe_open(site.artifacts[TRAINED], "pt") as file:
            found = {n.removeprefix(mark): file.get_tensor(n) for n in file.keys() if n.startswith(mark)}  # noqa: SIM118
        draws = generators(self.seed, site)
        wanted = self.start(len(site.kv_heads), site.head_dim, draws)
        shapes = {name: (site.kv_heads_real, *part.shape[1:]) for name, part in wanted.items()}
        if {name: tuple(part.shape) for name, part in found.items()} != shapes:
            raise ValueError(f"the weights in {TRAINED} do not fit {name_of(self)} on this model: train them on it")
        return {name: torch.stack([_head(part, h) for h in site.kv_heads]) for name, part in found.items()}


def _head(part_G: Tensor, head: int) -> Tensor:
    return part_G[head] if head < len(part_G) else torch.zeros_like(part_G[0])


def generators(seed: int, site: Site) -> list[torch.Generator]:
    """One for each key/value head of this rank: what is drawn depends on layer and head, not on who holds them."""
    heads = (1_000_003 * seed + 4099 * site.layer + head for head in site.kv_heads)
    return [torch.Generator().manual_seed(head) for head in heads]


def load_map(name: str, width: int | None, seed: int) -> FeatureMap:
    """The map in models/feature_maps/<name>.py.

    Raises:
        ValueError: it does not take this width.
    """
    module = importlib.import_module(f".feature_maps.{name}", __package__)
    own = (v for k, v in vars(module).items() if not k.startswith("_") and isinstance(v, type))
    made: FeatureMap = next(v for v in own if v.__module__ == module.__name__)(width, seed)
    return made


def name_of(found: FeatureMap) -> str:
    """The name of a map: that of its file."""
    return type(found).__module__.rsplit(".", 1)[-1]


def exponentials(exponents_BGNF: Tensor) -> Features:
    """The exponential of something that may be large, without overflow."""
    top = exponents_BGNF.amax(-1)
    return Features((exponents_BGNF - top[..., None]).exp(), top)


def plain(value_BGNF: Tensor) -> Features:
    """Features that need no scale of their own."""
    return Features(value_BGNF, torch.zeros_like(value_BGNF[..., 0]))


def orthonormal(head_dim: int, width: int, generator: torch.Generator) -> Tensor:
    """A random basis [D, W] with W <= D orthonormal columns."""
    return torch.linalg.qr(torch.randn(head_dim, width, generator=generator)).Q


def leading(site: Site, width: int, file: str = "basis") -> Tensor:
    """The first W principal components of the keys of this rank's heads, [G, D, W], from an artifact of task pca.

    Raises:
        ValueError: it is of another model.
    """
    with safe_open(site.artifacts[file], "pt") as opened:
        basis = opened.get_tensor(f"layer.{site.layer}.basis")
    if basis.shape != (want := (site.kv_heads_real, site.head_dim, site.head_dim)):
        raise ValueError(f"the basis has shape {tuple(basis.shape)}, this model needs {want}: calibrate on this model")
    return torch.stack([_head(basis, h)[:, :width] for h in site.kv_heads]).float()


def spread(head_dim: int, width: int) -> float:
    """By what a random projection is multiplied, so that products of projected rows are right in the mean."""
    return math.sqrt(head_dim / width)
