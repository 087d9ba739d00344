"""Distillation of attention: for each layer by itself, something small learns to give full attention's outputs.

The model is frozen and runs under full attention, so every layer is taught on what it will see while all others are
right (LESS, arXiv 2402.09398; LoLCATs, arXiv 2410.10254). Heads share no weight and no norm: what a head learns does
not depend on which rank holds which other heads.

Shapes: B windows, G key/value heads, J query heads of each, T rows, D head dimension.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..models.call import Call
from ..models.ledger import Ledger
from ..models.memory import Memory, Site
from ..models.methods.full import Full
from .lm import Session


@dataclass(frozen=True)
class Lesson:
    """What one layer attended: queries [B, G, J, T, D], keys and values [B, G, T, D], in fp32.

    Queries and keys are multiplied by the square root of the factor of q . k, as feature maps take them.
    """

    site: Site
    q: Tensor
    k: Tensor
    v: Tensor

    def scores(self) -> Tensor:
        """Q . k, [B, G, J, T, T]; -inf for what is not yet written."""
        scores = self.q @ self.k[:, :, None].mT
        return scores.masked_fill(torch.ones_like(scores[0, 0, 0], dtype=torch.bool).triu(1), -torch.inf)

    def attended(self, scores: Tensor) -> Tensor:
        """Outputs [B, G, J, T, D] under these scores."""
        return scores.softmax(-1) @ self.v[:, :, None]


class Pupil(ABC):
    """What learns: weights [G, ...] of a layer, and the output that they give."""

    first: int  # rows before this one are attended as they are, and teach nothing

    @abstractmethod
    def start(self, lesson: Lesson) -> dict[str, Tensor]:
        """Weights to start from; `lesson` is training text."""

    @abstractmethod
    def output(self, weights: Mapping[str, Tensor], lesson: Lesson) -> Tensor:
        """Outputs [B, G, J, T, D] that should be full attention's."""

    @abstractmethod
    def without(self, lesson: Lesson) -> Tensor:
        """The same if what the pupil stands for were dropped."""


@dataclass
class _Layer:
    """One layer's weights on their way, and its errors on held-out text: squares [3, G] and those of the target."""

    weights: dict[str, Tensor]
    adam: torch.optim.Optimizer
    errors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Learned:
    """Weights by layer, for all heads of the model; relative errors of the output on held-out text, by layer and head.

    Each error is the root of the summed squares over that of full attention's outputs: `dropped` without the pupil,
    `before` and `after` its training.
    """

    weights: Mapping[int, Mapping[str, Tensor]]
    errors: Mapping[str, Tensor]

    def metrics(self) -> dict[str, float]:
        """The errors over all layers and heads."""
        return {f"error_{name}": float(table.square().mean().sqrt()) for name, table in self.errors.items()}

    def samples(self) -> list[dict[str, float]]:
        """The errors of each layer and head."""
        layers, heads = next(iter(self.errors.values())).shape
        places = [(layer, head) for layer in range(layers) for head in range(heads)]
        return [{"layer": i, "head": h, **{n: float(e[i, h]) for n, e in self.errors.items()}} for i, h in places]


@dataclass(frozen=True)
class Plan:
    """How long and how fast; windows are those read, the last tenth of them (at least one) held out."""

    epochs: int
    rate: float
    at_once: int
    seed: int


def distil(session: Session, pupil: Pupil, windows: Tensor, plan: Plan) -> Learned:
    """Teach every layer; windows [N, T] of tokens.

    Raises:
        ValueError: fewer than two windows, or windows without a row to learn from.
    """
    if len(windows) < 2 or windows.shape[1] <= pupil.first:
        raise ValueError(
            f"{len(windows)} windows of {windows.shape[1]} tokens teach nothing beyond row {pupil.first}: "
            "give more tokens, or longer windows"
        )
    split = len(windows) - max(1, len(windows) // 10)
    school = _School(session, pupil, plan)
    school.read(windows[: plan.at_once], school.begin)
    school.read(windows[split:], school.examine("before"))
    school.train(windows[:split])
    school.read(windows[split:], school.examine("after"))
    return school.learned()


class _School:
    def __init__(self, session: Session, pupil: Pupil, plan: Plan) -> None:
        self.session, self.pupil, self.plan = session, pupil, plan
        self.layers: dict[int, _Layer] = {}

    def read(self, windows: Tensor, visit: Callable[[Lesson], None]) -> None:
        """Let every layer of every window be visited."""
        with self.session.instead(_Watch(visit)):
            for part in windows.split(self.plan.at_once):
                self.session.prefill(part.tolist())

    def begin(self, lesson: Lesson) -> None:
        weights = {n: w.to(lesson.q.device).requires_grad_() for n, w in self.pupil.start(lesson).items()}
        self.layers[lesson.site.layer] = _Layer(weights, torch.optim.Adam(weights.values(), self.plan.rate))

    def train(self, windows: Tensor) -> None:
        order = torch.Generator().manual_seed(self.plan.seed)
        steps = self.plan.epochs * -(-len(windows) // self.plan.at_once)
        done = 0
        for _ in range(self.plan.epochs):
            for part in windows[torch.randperm(len(windows), generator=order)].split(self.plan.at_once):
                rate = self.plan.rate * (1 + math.cos(math.pi * done / steps)) / 2
                self.read(part, functools.partial(self._step, rate))
                done += 1

    def _step(self, rate: float, lesson: Lesson) -> None:
        layer = self.layers[lesson.site.layer]
        target = lesson.attended(lesson.scores())
        with torch.enable_grad():
            found = self.pupil.output(layer.weights, lesson)
            loss = (
                _squares(found - target, self.pupil.first) / _squares(target, self.pupil.first).clamp(min=1e-12)
            ).sum()
            layer.adam.zero_grad()
            loss.backward()
        for group in layer.adam.param_groups:
            group["lr"] = rate
        layer.adam.step()

    def examine(self, name: str) -> Callable[[Lesson], None]:
        """A visit that adds up errors under a name."""

        def visit(lesson: Lesson) -> None:
            layer, first = self.layers[lesson.site.layer], self.pupil.first
            target = lesson.attended(lesson.scores())
            found = {name: self.pupil.output(layer.weights, lesson) - target, "full": target}
            found["dropped"] = self.pupil.without(lesson) - target
            if name == "after":
                found = {name: found[name]}
            for key, error in found.items():
                layer.errors[key] = layer.errors.get(key, 0) + _squares(error.detach(), first)

        return visit

    def learned(self) -> Learned:
        """Join the heads of all ranks; those that only pad come last."""
        mine = [({n: w.detach().cpu() for n, w in one.weights.items()}, {n: e.cpu() for n, e in one.errors.items()})
                for _, one in sorted(self.layers.items())]  # fmt: skip
        everyone = self.session.lm.world.gather(mine)
        real = self.session.lm.shard.kv_heads_real or len(next(iter(mine[0][1].values())))
        weights, errors = zip(*(_joined(parts) for parts in zip(*everyone, strict=True)), strict=True)
        groups = sum(len(rank[0][1]["full"]) for rank in everyone)
        cut = [{n: w[: real * len(w) // groups] for n, w in one.items()} for one in weights]
        table = {n: torch.stack([one[n][:real] for one in errors]) for n in ("dropped", "before", "after", "full")}
        relative = {n: (table[n] / table["full"].clamp(min=1e-12)).sqrt() for n in ("dropped", "before", "after")}
        return Learned(dict(enumerate(cut)), relative)


def _joined(parts: tuple[Any, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One layer's weights and errors, heads of all ranks in a row."""
    weights, errors = ([part[i] for part in parts] for i in (0, 1))
    return _cat(weights), _cat(errors)


def _cat(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _squares(x_BGJTD: Tensor, first: int) -> Tensor:
    """Summed squares of each key/value head's rows from `first` on, [G]."""
    return x_BGJTD[:, :, :, first:].square().sum((0, 2, 3, 4))


@dataclass(frozen=True)
class _Watch(Full):
    """Full attention of whole windows, of which every layer is visited."""

    visit: Callable[[Lesson], None] = field(default=lambda _: None)

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Visit, then attend."""
        k, v = memory.keys.view.float(), memory.values.view.float()
        q = q_BHTD.float().unflatten(1, (k.shape[1], -1))
        self.visit(Lesson(memory.site, q * call.scale**0.5, k * call.scale**0.5, v))
        return super().attend_dense(q_BHTD, memory, call, ledger)

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """The same, whether prompts are dense or sparse."""
        return self.attend_dense(q_BHTD, memory, call, ledger)
