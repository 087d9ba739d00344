"""The only file that knows AxoNN: tensor-parallel inference, attention heads and their caches split over the ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import linear as linear_of
from transformers import PreTrainedModel

from ..kernels.skinny_linear import OP as SKINNY_LINEAR
from .rank_sum import Parts, RankSum

SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shard:
    """Which key/value heads a rank holds: whole groups, the same number on every rank.

    Attributes:
        kv_heads_real: of the whole model; 0 where nobody said (then all heads are here).
        sums: how the ranks add up their parts, for the record; empty on one rank.
    """

    rank: int = 0
    size: int = 1
    kv_heads_real: int = 0
    sums: str = ""

    @classmethod
    def whole(cls) -> Shard:
        """One rank that holds everything."""
        return cls()

    def heads(self, here: int) -> tuple[int, ...]:
        """Global numbers of the `here` key/value heads of this rank; numbers from kv_heads_real on are padding."""
        return tuple(range(self.rank * here, (self.rank + 1) * here))


def start(rank: int, size: int, address: str, backend: str, timeout_s: float) -> None:
    """Join the ranks: torch.distributed first, then AxoNN's groups on top of it.

    Args:
        rank: this process.
        size: number of ranks.
        address: tcp://host:port of rank 0.
        backend: nccl or gloo.
        timeout_s: after so long without its peers a collective fails instead of hanging.
    """
    dist.init_process_group(
        backend, init_method=address, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
    )
    from axonn import axonn as ax  # noqa: PLC0415 - MPI must be up before: importing axonn forbids mpi4py to start it

    gpus = torch.cuda.device_count() if backend == "nccl" else 1
    with _groups_of(backend, timedelta(seconds=timeout_s)):
        ax.init(G_data=1, G_inter=1, G_intra_r=size, gpus_per_node=gpus)


@contextmanager
def _groups_of(backend: str, timeout: timedelta) -> Iterator[None]:
    """While AxoNN 0.2.0 starts: its groups get our backend and patience, and no GPU is asked for where there is none.

    It names NCCL for every group, sets a CUDA device and makes parameters there; each is put back once it is over.
    """
    import axonn.intra_layer.fully_connected as fc  # noqa: PLC0415

    new_group, set_device = dist.new_group, torch.cuda.set_device

    def our_group(ranks: Any = None, *_: Any, **kwargs: Any) -> Any:
        kept = {k: v for k, v in kwargs.items() if k not in ("backend", "timeout")}
        return new_group(ranks, timeout=timeout, backend=backend, **kept)

    dist.new_group = our_group
    if backend != "nccl":
        torch.cuda.set_device = lambda *_: None
        if not isinstance(fc.initialize_params, partial):
            fc.initialize_params = partial(fc.initialize_params, init_device="cpu")
    try:
        yield
    finally:
        dist.new_group, torch.cuda.set_device = new_group, set_device


def stop() -> None:
    """Leave the ranks, if joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


@torch.no_grad()
def split(model: PreTrainedModel, rank: int, size: int) -> Shard:
    """Replace a model's projections, in place, by AxoNN's; heads are split in whole groups.

    Where the number of key/value heads is no multiple of the ranks, zero heads pad it: they change nothing, are never
    counted, and cost what they cost.

    Raises:
        ValueError: fewer key/value heads than ranks, an MLP that does not divide, or an architecture that is not
            Llama-shaped (q_proj, k_proj, v_proj, o_proj; gate_proj, up_proj, down_proj).
    """
    config = model.config.get_text_config()
    if size == 1:
        return Shard(0, 1, getattr(config, "num_key_value_heads", config.num_attention_heads))
    _check(model, size)
    groups = config.num_key_value_heads
    padded = math.ceil(groups / size) * size
    layers: Any = model.base_model.layers
    add = _rank_sum(model.device)
    for layer in layers:
        _split_attention(layer.self_attn, groups, padded, add)
        _split_mlp(layer.mlp, add)
    head = model.get_output_embeddings()
    if head.out_features % size == 0:
        model.lm_head = GatheredLinear(head)
    return Shard(rank, size, groups, add.how)


def _rank_sum(device: torch.device) -> RankSum:
    from axonn import axonn as ax  # noqa: PLC0415 - only with more than one rank

    return RankSum(ax.comm_handle.outer_intra_layer_parallel_group, device)


def _check(model: PreTrainedModel, size: int) -> None:
    config = model.config.get_text_config()
    layers = getattr(model.base_model, "layers", None)
    found = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if layers is None or not found.issuperset(SPLIT) or not found <= {*SPLIT, "lm_head"}:
        raise ValueError(
            f"{type(model).__name__} cannot be split: tensor parallelism covers Llama-shaped models; use 1 rank"
        )
    if config.num_key_value_heads < size:
        raise ValueError(
            f"{size} ranks cannot share {config.num_key_value_heads} key/value heads: "
            f"use at most {config.num_key_value_heads} ranks"
        )
    if config.intermediate_size % size:
        raise ValueError(
            f"an MLP of {config.intermediate_size} does not divide by {size} ranks: use another rank count"
        )


def _split_attention(attention: Any, groups: int, padded: int, add: RankSum) -> None:
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(attention, name, SplitLinear(_pad(getattr(attention, name), 0, groups, padded)))
    attention.o_proj = SplitLinear(_pad(attention.o_proj, 1, groups, padded), add)


def _split_mlp(mlp: Any, add: RankSum) -> None:
    mlp.gate_proj, mlp.up_proj = SplitLinear(mlp.gate_proj), SplitLinear(mlp.up_proj)
    mlp.down_proj = SplitLinear(mlp.down_proj, add)


def _pad(linear: nn.Linear, dim: int, groups: int, padded: int) -> nn.Linear:
    """Zero outputs (dim 0) or inputs (dim 1) for the padding heads, so that the size grows by padded / groups."""
    if groups == padded:
        return linear
    weight = linear.weight
    more = list(weight.shape)
    more[dim] = more[dim] // groups * (padded - groups)
    grown = torch.cat([weight, weight.new_zeros(more)], dim)
    new = nn.Linear(grown.shape[1], grown.shape[0], bias=linear.bias is not None, device="meta")
    new.weight = nn.Parameter(grown, requires_grad=False)
    if linear.bias is not None:
        bias = linear.bias
        missing = grown.shape[0] - bias.shape[0]
        new.bias = nn.Parameter(torch.cat([bias, bias.new_zeros(missing)]), requires_grad=False)
    return new


def _axonn(linear: nn.Linear, *, rows: bool) -> nn.Module:
    """rows=False: outputs split, no communication; rows=True: inputs split, outputs summed over the ranks."""
    from axonn.intra_layer import Linear  # noqa: PLC0415 - only with more than one rank

    new = Linear(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        transpose=rows,
        expert_mode=True,  # Megatron's way; the other one gathers whole heads on every rank
        init_method=lambda _: None,
    ).to(device=linear.weight.device, dtype=linear.weight.dtype)
    new.load_state_dict(linear.state_dict())  # AxoNN cuts its own slice out of the full matrix
    return new.requires_grad_(requires_grad=False)


class SplitLinear(nn.Module):
    """AxoNN's layer, its slice and its groups, without what only training needs.

    AxoNN's own forward sums over every group, also those of one rank: a collective each that adds nothing, and Python
    that takes longer than the product. Without `add` the outputs are split and nothing is sent; with it the inputs are
    split and the parts are summed.
    """

    def __init__(self, linear: nn.Linear, add: RankSum | None = None) -> None:
        super().__init__()
        self.add = add
        self.axonn: Any = _axonn(linear, rows=add is not None)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._shape = (self.axonn.local_out_features, self.axonn.local_in_features)

    @property
    def weight(self) -> Tensor:
        """This rank's slice."""
        return self.axonn.weight.view(self._shape)

    def forward(self, x: Tensor) -> Tensor:
        """This rank's outputs, or the sum of all ranks' parts."""
        if self.add is None:
            return linear_of(x, self.weight, self.axonn.bias)
        return self._summed(linear_of(x, self.weight), self.add)

    def _summed(self, part: Tensor, add: RankSum) -> Tensor:
        total, bias = add(part), self.axonn.bias
        return total if bias is None else total + bias

    def unsummed(self, x_BF: Tensor, place: int) -> Tensor | Parts:
        """What all ranks have still to add up, if their memory allows it; else the sum of it.

        Args:
            x_BF: [B, F] this rank's inputs.
            place: 0 or 1, another one than at the sum before.
        """
        assert self.add is not None, "outputs that are split leave no sum"
        late = None if self.axonn.bias is not None else self.add.parts(x_BF, self.weight, place)
        return self._summed(SKINNY_LINEAR(x_BF, self.weight), self.add) if late is None else late


class GatheredLinear(SplitLinear):
    """An output layer split over the ranks whose logits are whole on each of them."""

    def forward(self, x: Tensor) -> Tensor:
        """Whole logits."""
        from axonn.intra_layer import Gather  # noqa: PLC0415

        return Gather.apply(super().forward(x), self.axonn.outer_group)
