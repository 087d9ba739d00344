"""Muon for the matrices of the layers and AdamW for the rest, or AdamW alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .sharding import cut_like

BETAS, EPSILON, MOMENTUM = (0.9, 0.95), 1e-8, 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: singular values end between about 0.7 and 1.2
ITERATIONS = 5


class Optimiser(Protocol):
    """What the loop needs of an optimiser."""

    def step(self, factor: float) -> None:
        """Change the weights by their gradients, at `factor` times the rate."""

    def state(self) -> dict[str, Tensor]:
        """All that a later run needs to go on, as tensors with names."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""


class AdamW:
    """AdamW of torch, with decay for matrices alone."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], rate: float, decay: float) -> None:
        self._names = list(parameters)
        self._rate = rate
        wide = [p for p in parameters.values() if p.ndim > 1]
        thin = [p for p in parameters.values() if p.ndim <= 1]
        groups = [{"params": wide, "weight_decay": decay}, {"params": thin, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        fused = all(p.is_cuda for p in parameters.values())
        self._parameters = parameters
        self._adam = torch.optim.AdamW(groups, lr=rate, betas=BETAS, eps=EPSILON, fused=fused)

    def step(self, factor: float) -> None:
        """Change the weights."""
        for group in self._adam.param_groups:
            group["lr"] = self._rate * factor
        self._adam.step()

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts."""
        kept = self._adam.state
        return {f"adam.{n}.{k}": v for n, p in self._parameters.items() for k, v in kept.get(p, {}).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take them up."""
        for name, parameter in self._parameters.items():
            step = state[f"adam.{name}.step"].to(parameter.device if self._adam.defaults["fused"] else "cpu")
            moments = {k: cut_like(parameter, state[f"adam.{name}.{k}"]) for k in ("exp_avg", "exp_avg_sq")}
            self._adam.state[parameter] = {"step": step, **moments}


class Muon:
    """Muon (Jordan et al. 2024): momentum made orthogonal by Newton-Schulz steps.

    torch.optim.Muon does one matrix after another, some thousand kernel launches a step for a small model, which is
    longer than its forward pass; here the matrices of a shape are stacked. A test holds the two equal.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rate: float, decay: float) -> None:
        self._rate, self._decay = rate, decay
        shapes: dict[torch.Size, list[tuple[str, nn.Parameter]]] = defaultdict(list)
        for name, parameter in parameters.items():
            shapes[parameter.shape].append((name, parameter))
        self._stacks = [([n for n, _ in found], [p for _, p in found]) for found in shapes.values()]
        self._momenta = [torch.zeros_like(torch.stack([p.detach() for p in stack])) for _, stack in self._stacks]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Change the weights."""
        rate = self._rate * factor
        for (_, stack), momentum in zip(self._stacks, self._momenta, strict=True):
            grads = torch.stack([p.grad for p in stack if p.grad is not None])
            along = direction(grads, momentum)
            size = rate * max(1.0, stack[0].shape[0] / stack[0].shape[1]) ** 0.5
            weights: list[Tensor] = list(stack)
            torch._foreach_mul_(weights, 1 - rate * self._decay)
            torch._foreach_add_(weights, list(along.unbind()), alpha=-size)

    def state(self) -> dict[str, Tensor]:
        """Momenta."""
        pairs = zip(self._stacks, self._momenta, strict=True)
        return {f"muon.{n}": m for (names, _), stack in pairs for n, m in zip(names, stack, strict=True)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take them up."""
        for (names, _), momentum in zip(self._stacks, self._momenta, strict=True):
            momentum.copy_(torch.stack([state[f"muon.{name}"] for name in names]))


def direction(grads_Nrc: Tensor, momentum_Nrc: Tensor) -> Tensor:
    """The orthogonal factor, nearly, of Nesterov's momentum of N matrices; the momentum goes on in place."""
    momentum_Nrc.lerp_(grads_Nrc, 1 - MOMENTUM)
    x = grads_Nrc.lerp(momentum_Nrc, MOMENTUM)
    x = x.bfloat16() if x.is_cuda else x  # faster there; elsewhere what more ranks sum in another order stays small
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(grads_Nrc.dtype)


class Both:
    """Muon for the matrices inside of the layers, AdamW for all else."""

    def __init__(self, parts: tuple[Optimiser, Optimiser]) -> None:
        self._parts = parts

    def step(self, factor: float) -> None:
        """Change the weights."""
        for part in self._parts:
            part.step(factor)

    def state(self) -> dict[str, Tensor]:
        """Of both."""
        return {name: tensor for part in self._parts for name, tensor in part.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take them up."""
        for part in self._parts:
            part.load(state)


def make_optimiser(
    model: nn.Module, kind: Literal["muon", "adamw"], rate: float, matrix_rate: float, decay: float
) -> Optimiser:
    """The optimiser of a model's parameters."""
    every = dict(model.named_parameters())
    if kind == "adamw":
        return AdamW(every, rate, decay)
    matrices = dict(_matrices(every))
    rest = {name: p for name, p in every.items() if name not in matrices}
    return Both((Muon(matrices, matrix_rate, decay), AdamW(rest, rate, decay)))


def _matrices(parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in parameters.items() if p.ndim == 2 and ".layers." in name)
