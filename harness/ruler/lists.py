"""RULER's variable tracking and its two kinds of frequent words (arXiv 2404.06654, section 3)."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .niah import vocabulary
from .page import NOISE, Draft, Page


@dataclass(frozen=True)
class Variables:
    """vt: a number, and a chain of variables that take it, one from another."""

    hops: int = 4
    new: int = 30

    def draft(self, page: Page) -> Draft:
        """Statements in their order between lines of noise."""
        names = _distinct(page.dice, self.hops + 1, 5, string.ascii_uppercase)
        value = page.dice.randrange(10000, 99999)
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {new} = VAR {old}" for old, new in pairwise(names)]
        head = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        tail = (
            f"Question: Find all variables that are assigned the value {value} in the text above. Answer: According "
            f"to the chain(s) of variable assignment in the text above, {len(names)} variables are assigned the value "
            f"{value}, they are:"
        )
        return page.draft(head, page.lines(head, tail, chain, lambda: NOISE), tail, names)


@dataclass(frozen=True)
class Common:
    """cwe: a numbered list in which ten words come 30 times and the others 3 times (short pages: 6 and 1)."""

    new: int = 120

    def draft(self, page: Page) -> Draft:
        """As many other words as fit; the beginning of the list, which is an example in RULER, is left out here."""
        often, seldom = (30, 3) if page.tokens >= 3900 else (6, 1)
        words = sorted({w for c in ("noun", "adjective", "verb") for w in vocabulary(c)})
        page.dice.shuffle(words)
        common, rest = words[:10], words[10:]
        head = (
            "Below is a numbered list of words. In these words, some appear more often than others. "
            "Memorize the ones that appear most often.\n"
        )
        tail = (
            "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear "
            "most often in the list are:"
        )
        room = page.tokens - page.size(head) - page.size(tail)
        others = min(len(rest), room // (4 * seldom))  # a number, its dot and a word are four tokens at least
        while True:
            listed = page.dice.sample(common * often + rest[:others] * seldom, 10 * often + others * seldom)
            body = [t for n, word in enumerate(listed, 1) for t in page.session.encode(f" {n}. {word}")]
            if len(body) <= room:
                return page.draft(head, body, tail, common)
            if not others:
                raise ValueError(f"{page.tokens} tokens are too few for cwe: raise length")
            others = min(others - 1, int(others * 0.98 * room / len(body)))


@dataclass(frozen=True)
class Frequent:
    """fwe: made-up words whose frequency falls as a power of their rank; the three most frequent are asked for."""

    alpha: float = 2.0
    new: int = 50

    def draft(self, page: Page) -> Draft:
        """The first rank is dots, which do not count."""
        words = ["...", *_distinct(page.dice, max(20, page.tokens // 50), 6, string.ascii_lowercase)]
        head = (
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
            "appeared coded words."
        )
        tail = (
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
            "most frequently appeared words in the above coded text? Answer: According to the coded text above, the "
            "three most frequently appeared words are:"
        )
        room = page.tokens - page.size(head) - page.size(tail)
        shares = [rank**-self.alpha for rank in range(1, len(words) + 1)]
        sizes = [page.size(f" {word}") for word in words]
        count = room / (sum(a * b for a, b in zip(shares, sizes, strict=True)) / sum(shares))
        drawn = [w for w, share in zip(words, shares, strict=True) for _ in range(int(count * share / sum(shares)))]
        if min(map(drawn.count, words[1:4])) == drawn.count(words[4]):
            raise ValueError(f"{page.tokens} tokens are too few for fwe: raise length")
        page.dice.shuffle(drawn)
        return page.draft(head, [t for w in drawn for t in page.session.encode(f" {w}")], tail, words[1:4])


def _distinct(dice: random.Random, count: int, letters: int, alphabet: Sequence[str]) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = "".join(dice.choices(alphabet, k=letters))
        names += [] if name in names else [name]
    return names
