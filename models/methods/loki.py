"""Loki: low-rank keys choose the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from ...results import rules
from ...results.fields import ByteCount, Keep, Needs, RowCount, Share, Within
from ..landing import Landing
from ..memory import Memory, Site
from ..method import Select


@dataclass(frozen=True)
class Loki(Select):
    """Rows are ranked by the first d principal components of the keys; the k best are attended exactly.

    Loki: Low-Rank Keys for Efficient Sparse Attention (arXiv 2406.02542, Algorithm 1). Keys are kept rotated by the PCA
    basis P of their layer and key/value head (q.k is the same in that basis, Lemma 4.1), with the leading d components
    once more in rows of their own, so that ranking reads d/D of the keys contiguously; these are charged. No row is
    evicted; no sink, window or layer is excepted.

    Arguments: `keep` a share of the row's causal length, `rows` a count, or `bytes` that a layer reads for a row,
    leading components and basis included; `d` leading components, a share of the head dimension or a count; or
    `variance` instead of d: the explained-variance rank, per layer the largest over its heads of the number of
    components whose cumulated share stays below it; `basis` the calibration (task pca; `rotary: pre` is the basis of
    keys before the rotary embedding). `heads: query` and `rule: call` are what the authors' code does.
    """

    keep: Keep = 0.25
    rows: RowCount = None
    bytes: ByteCount = None
    d: Annotated[int | float, Share("the head dimension")] | None = 0.25
    variance: Annotated[float, Within(0, 1, open_low=True)] | None = None
    basis: Annotated[Mapping[str, Any], Needs("pca")] = field(default_factory=dict)
    heads: Literal["kv", "query"] = "kv"
    rule: Literal["row", "call"] = "row"
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "select"

    def __post_init__(self) -> None:
        rules.one_budget(self)
        rules.refuse(
            self,
            when=(self.d is None) == (self.variance is None),
            why="give either d or variance: set the other to null",
        )

    def constants(self, site: Site) -> Mapping[str, Tensor]:
        """This rank's basis, columns by falling variance, cut after the rank d: lead [G, D, d], rest [G, D, D - d]."""
        with safe_open(site.artifacts["basis"], "pt") as file:
            basis = file.get_tensor(f"layer.{site.layer}.basis")
            shares = file.get_tensor(f"layer.{site.layer}.variance")
        if basis.shape[-1] != site.head_dim or basis.shape[0] != site.kv_heads_real:
            want = (site.kv_heads_real, site.head_dim, site.head_dim)
            raise ValueError(
                f"the basis has shape {tuple(basis.shape)}, this model needs {want}: calibrate on this model"
            )
        padding = torch.eye(site.head_dim)
        mine = torch.stack([basis[h] if h < len(basis) else padding for h in site.kv_heads])
        lead, rest = mine.tensor_split([self._rank(shares)], -1)
        return {"lead": lead, "rest": rest}

    def _rank(self, shares_GD: Tensor) -> int:
        if self.variance is not None:
            below = (shares_GD.double().cumsum(-1) < self.variance).sum(-1)
            return max(1, int(below.max()))
        amount = self.d
        assert amount is not None
        size = shares_GD.shape[-1]
        return min(amount, size) if isinstance(amount, int) else max(1, int(amount * size))

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Rotate, append, and append the leading components beside."""
        lead = k_BGTD @ memory.constants["lead"]
        rotated = torch.cat([lead, k_BGTD @ memory.constants["rest"]], -1)
        memory.append(rotated, v_BGTD, {"lead": lead})

    def landing(self, memory: Memory) -> Landing:
        """The same of a single row, in one launch."""
        return Landing(memory.constants["lead"], memory.constants["rest"], memory.aux["lead"])

    def project(self, q_BHTD: Tensor, memory: Memory) -> Tensor:
        """Q P, with the basis of each query head's key/value head."""
        basis = torch.cat([memory.constants["lead"], memory.constants["rest"]], -1)
        return q_BHTD @ basis.repeat_interleave(q_BHTD.shape[1] // basis.shape[0], 0)

    def score_rows(self, q_BHTD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """The leading d components."""
        lead = memory.aux["lead"].view
        return q_BHTD[..., : lead.shape[-1]], lead

    def score_bytes(self, memory: Memory) -> float:
        """D components of a key."""
        return memory.aux["lead"].row_bytes
