"""RULER's eight needle kinds (arXiv 2404.06654, table 2): keys, values and haystacks of several sorts."""

from __future__ import annotations

import functools
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..haystack import plant
from .page import NOISE, Draft, Page

Sort = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True)
class Niah:
    """One kind: what surrounds the needles, what keys and values are, how many keys, values of each, and questions."""

    hay: Literal["noise", "prose", "needles"]
    key: Sort = "words"
    value: Sort = "numbers"
    keys: int = 1
    values: int = 1
    asked: int = 1
    new: int = 128

    def draft(self, page: Page) -> Draft:
        """Needles in their haystack, and the question."""
        make, dice = SORTS[self.key], page.dice
        names: list[str] = []
        while len(names) < self.keys:
            name = make(dice)
            names += [] if name in names else [name]
        facts = [(name, [SORTS[self.value](dice) for _ in range(self.values)]) for name in names]
        asked = dice.sample(facts, self.asked)
        head, tail = self._ask([name for name, _ in asked])
        tail = f"\n{tail}" if self.hay == "prose" else tail  # a line of its own
        needles = [self._needle(name, value) for name, values in facts for value in values]
        dice.shuffle(needles)
        return page.draft(
            head, self._hidden(page, head, tail, needles), tail, [v for _, values in asked for v in values]
        )

    def _hidden(self, page: Page, head: str, tail: str, needles: list[str]) -> list[int]:
        if self.hay == "prose":
            prose, placed = page.prose(head, tail, needles)
            return plant(page.session, prose, placed)[0]
        return page.lines(head, tail, needles, lambda: self._filler(page.dice))

    def _filler(self, dice: random.Random) -> str:
        if self.hay == "noise":
            return NOISE
        return self._needle(SORTS[self.key](dice), SORTS[self.value](dice))

    def _needle(self, name: str, value: str) -> str:
        return f"One of the special magic {self.value} for {name} is: {value}."

    def _ask(self, names: list[str]) -> tuple[str, str]:
        several = self.asked * self.values > 1
        what = self.value if several else self.value.removesuffix("s")
        some, are, all_are = ("Some", "are", "are all") if several else ("A", "is", "is")
        listed = " and ".join(filter(None, [", ".join(names[:-1]) + "," * (len(names) > 1), names[-1]])).strip()
        head = (
            f"{some} special magic {what} {are} hidden within the following text. Make sure to memorize it. "
            f"I will quiz you about the {what} afterwards.\n"
        )
        asked = f"What {all_are} the special magic {what} for {listed} mentioned in the provided text?"
        return head, f"{asked} The special magic {what} for {listed} mentioned in the provided text {are}"


@functools.cache
def vocabulary(category: str) -> tuple[str, ...]:
    """Nouns, adjectives or verbs of wonderwords, the lists that RULER takes its words from."""
    from wonderwords import RandomWord  # noqa: PLC0415 - only this kind of task needs its lists

    return tuple(sorted(RandomWord().filter(include_categories=[category])))


def _word(dice: random.Random) -> str:
    return f"{dice.choice(vocabulary('adjective'))}-{dice.choice(vocabulary('noun'))}"


SORTS: Mapping[str, Callable[[random.Random], str]] = {
    "words": _word,
    "numbers": lambda dice: str(dice.randrange(10**6, 10**7)),
    "uuids": lambda dice: str(uuid.UUID(int=dice.getrandbits(128), version=4)),
}
