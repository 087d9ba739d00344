"""What a run does at which step: lengths that grow, rates that rise and fall, and which rank makes which part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Steps with rows of equal length."""

    length: int
    steps: int
    planted: float


@dataclass(frozen=True)
class Part:
    """A part of a step's batch that one rank forwards at once."""

    step: int
    number: int
    rows: int
    length: int
    planted: float
    last: bool  # of this rank in this step


@dataclass(frozen=True)
class Schedule:
    """The whole run.

    Attributes:
        stages: one after another.
        step_tokens: tokens of a step over all ranks.
        part_tokens: tokens of a forward pass; what a step gives does not depend on who forwards which part.
        warmup: share of the steps in which rates rise from 0; `decay` in which they fall at the end, to `floor`.
    """

    stages: tuple[Stage, ...]
    step_tokens: int
    part_tokens: int
    warmup: float
    decay: float
    floor: float

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        shares: Sequence[float],
        planted: Sequence[float],
        tokens: int,
        step_tokens: int,
        part_tokens: int,
        rates: tuple[float, float, float],
    ) -> Schedule:
        """Cut the run's tokens into steps.

        Raises:
            ValueError: lists of different lengths, shares that do not sum to 1, or tokens that do not divide.
        """
        if not len(lengths) == len(shares) == len(planted):
            raise ValueError(
                f"lengths, shares and planted have {len(lengths)}, {len(shares)} and {len(planted)} entries: "
                "expected one of each for a stage"
            )
        if abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares sum to {sum(shares):g}, expected 1: they share out the run's tokens")
        for length in lengths:
            if part_tokens % length or step_tokens % part_tokens:
                raise ValueError(
                    f"a length of {length} must divide part_tokens ({part_tokens}), that step_tokens ({step_tokens})"
                )
        steps = [max(1, round(tokens * share / step_tokens)) for share in shares]
        stages = tuple(Stage(*s) for s in zip(lengths, steps, planted, strict=True))
        return cls(stages, step_tokens, part_tokens, *rates)

    @property
    def steps(self) -> int:
        """How many optimiser steps."""
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise AssertionError

    def parts(self, first: int, rank: int, ranks: int) -> Iterator[Part]:
        """This rank's parts of all steps from `first` on.

        Raises:
            ValueError: a step's parts cannot be dealt out evenly.
        """
        count = self.step_tokens // self.part_tokens
        if count % ranks:
            raise ValueError(
                f"a step has {count} parts (step_tokens / part_tokens), which {ranks} ranks cannot share evenly"
            )
        for step in range(first, self.steps):
            stage = self.stage(step)
            rows = self.part_tokens // stage.length
            for number in range(rank, count, ranks):
                last = number + ranks >= count
                yield Part(step, number, rows, stage.length, stage.planted, last)

    def factor(self, step: int) -> float:
        """What the rates are multiplied with: up, level, down along a line."""
        rising, falling = math.ceil(self.warmup * self.steps), math.ceil(self.decay * self.steps)
        up = min(1.0, (step + 1) / rising) if rising else 1.0
        down = min(1.0, (self.steps - step) / falling) if falling else 1.0
        return up * (self.floor + (1 - self.floor) * down)
