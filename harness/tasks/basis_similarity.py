"""How alike the principal components of the keys are on two corpora."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from safetensors.torch import load_file
from torch import Tensor

from ...results.fields import Needs, Share
from ..lm import Session
from ..task import Outcome, Task


@dataclass(frozen=True)
class BasisSimilarity(Task):
    """Overlap of two calibrations' leading components, and the variance of one's keys that the other's still hold.

    With A and B the first d components [D, d] of a head on two corpora: the overlap |A' B|^2 / d is 1 where they span
    the same space, and d / D on average for spaces that have nothing to do with each other; it depends neither on signs
    nor on the order of the components, both of which a PCA leaves open. The variance held is tr(A' C A) / tr(B' C B),
    with C the covariance of the other corpus's keys: 1 where a basis from elsewhere is as good as their own.

    Arguments: `pca` the calibration whose basis is used, `other` that whose keys it is used on; `d` components, a share
    of the head dimension or a count.
    """

    pca: Annotated[Mapping[str, Any], Needs("pca")] = field(default_factory=dict)
    other: Annotated[Mapping[str, Any], Needs("pca")] = field(default_factory=dict)
    d: Annotated[int | float, Share("the head dimension")] = 0.25
    version: ClassVar[int] = 1

    def run(self, session: Session) -> Outcome:
        """Compare; a sample for each layer holds both numbers of each head."""
        mine, other = (load_file(session.binding.artifacts[name]) for name in ("pca", "other"))
        layers = sum(name.endswith(".basis") for name in mine)
        samples: list[dict[str, Any]] = []
        for name in (f"layer.{layer}" for layer in range(layers)):
            bases = mine[f"{name}.basis"].double(), other[f"{name}.basis"].double()
            overlap, held = compare(*bases, other[f"{name}.variance"].double(), self._rank(bases[0].shape[-1]))
            samples.append({"layer": len(samples), "overlap": overlap.tolist(), "variance_held": held.tolist()})
        every = {name: [v for s in samples for v in s[name]] for name in ("overlap", "variance_held")}
        means = {name: sum(values) / len(values) for name, values in every.items()}
        size = mine["layer.0.basis"].shape[-1]
        return Outcome({**means, "overlap_by_chance": self._rank(size) / size}, samples)

    def _rank(self, size: int) -> int:
        return min(self.d, size) if isinstance(self.d, int) else max(1, int(self.d * size))


def compare(mine_GDD: Tensor, other_GDD: Tensor, shares_GD: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Overlap of the first d columns, and the variance held of keys with components `other` and these shares; [G]."""
    # rows: the other's components; columns: mine
    square = (other_GDD.transpose(1, 2) @ mine_GDD[..., :d]).square()
    return square[:, :d].sum((1, 2)) / d, (shares_GD[..., None] * square).sum((1, 2)) / shares_GD[:, :d].sum(1)
