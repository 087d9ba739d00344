"""Linear residual: exact rows, and a state of fixed size for all that was dropped."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from ...results import rules
from ...results.fields import ByteCount, Keep, Module, Needs, RowCount, Share, Within
from ..feature_map import FeatureMap, load_map
from ..residual import Residual


@dataclass(frozen=True)
class LinearResidual(Residual):
    """Sinks, recent rows and heavy hitters are attended exactly; all that was dropped is kept as sums over features.

    The second order of softmax without training, as Based has it (arXiv 2402.18668), on what an exact set leaves, as
    LESS (arXiv 2402.09398) and LoLA (arXiv 2505.23666) put it. A row attends the rows held, itself included, and
    the state: (sum of exp(s) v + phi(q) S) / (sum of exp(s) + phi(q) z), with S and z the sums of phi(k) v and
    phi(k) over what was dropped, added in the domain of logarithms. Once the budget is full, a new row moves the
    row with the smallest mark into the state; marks are H2O's. Where the normaliser of a map is not positive the
    state is left out.

    Keeps those rows, their marks and the state, all in fp32 but the rows: F (D + 1) + 1 numbers a key/value head, 2 D +
    1 more with a centre, and the map's weights. A step reads all of that, and the row that it drops.

    Arguments: `keep` a share of the prompt (of the row's own causal length where nothing was prefilled), `rows` of each
    head, or `bytes` that a layer holds, state and marks included; of the rows `sinks` first ones, and `recent` last
    ones, a share or a count, so that `recent: 1.0` keeps no heavy ones. `features` is a map, a file of
    models/feature_maps, `width` its size, `seed` of what it draws; `centre: mean` expands around the mean of the
    keys dropped, as taylor and taylor_diagonal can. `basis`, arguments of the task pca, projects taylor on
    principal components; `trained`, those of the task feature_maps, is what learned maps need.
    """

    keep: Keep = 0.2
    rows: RowCount = None
    bytes: ByteCount = None
    sinks: Annotated[int, Within(0)] = 4
    recent: Annotated[int | float, Share("the budget")] = 0.5
    features: Annotated[str, Module("models/feature_maps")] = "taylor"
    width: Annotated[int, Within(1)] | None = None
    seed: Annotated[int, Within(0)] = 0
    centre: Literal["none", "mean"] = "none"
    basis: Annotated[Mapping[str, Any] | None, Needs("pca")] = None
    trained: Annotated[Mapping[str, Any] | None, Needs("feature_maps", same=("features", "width", "seed"))] = None
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        rules.one_budget(self)
        rules.rows_above(self, self.sinks, f"leaves none beside {self.sinks} sinks")
        if self.centred and not self.feature_map.centres:
            raise ValueError(f"linear_residual: {self.features} cannot expand around a mean: set centre: none")
        if self.feature_map.trained != (self.trained is not None):
            need = "is learned: give trained: {}" if self.feature_map.trained else "is not learned: leave trained out"
            raise ValueError(f"linear_residual: {self.features} {need}")
        if self.basis is not None and self.features != "taylor":
            raise ValueError(f"linear_residual: {self.features} is not projected: leave basis out")

    @functools.cached_property
    def feature_map(self) -> FeatureMap:
        """The map of that name."""
        return load_map(self.features, self.width, self.seed)

    @property
    def centred(self) -> bool:
        """Around the mean."""
        return self.centre == "mean"
