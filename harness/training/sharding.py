"""Weights, gradients and moments of a model that is too large for one device, in slices over the ranks (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard_model(model: Any, device: str) -> None:
    """Cut each layer, then the rest, over all ranks; in place.

    Raises:
        ValueError: only one rank is here.
    """
    if not torch.distributed.is_initialized():
        raise ValueError("sharded training needs several ranks: start it under mpirun, or take `weights: replicated`")
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank; a collective where it is cut."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def here(tensor: Tensor) -> Tensor:
    """This rank's slice of a tensor that may be cut; a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def put(target: Tensor, value: Tensor) -> None:
    """Write a whole tensor into one that may be cut."""
    target.copy_(cut_like(target, value))


def cut_like(target: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, cut and placed as another one is."""
    value = value.to(target.device)
    if isinstance(target, DTensor) and value.ndim == target.ndim:
        return distribute_tensor(value, target.device_mesh, target.placements)
    return value


def add_up(parameters: list[nn.Parameter], ranks: int) -> None:
    """Sums over the ranks in place of each rank's own gradients."""
    if ranks == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    for grad in grads:
        if isinstance(grad, DTensor):
            grad.mul_(ranks)  # FSDP has summed them already, and divided
    own = [grad for grad in grads if not isinstance(grad, DTensor)]
    if own:
        flat = torch.cat([grad.flatten() for grad in own])  # one message in place of one for each parameter
        torch.distributed.all_reduce(flat)
        parts = flat.split([grad.numel() for grad in own])
        torch._foreach_copy_(own, [part.view_as(grad) for part, grad in zip(parts, own, strict=True)])
