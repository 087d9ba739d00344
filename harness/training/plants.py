"""What is planted in training text so that a small model learns to retrieve: five kinds, mixed as asked.

| kind | in the row | what weighs `answer` times in the loss |
|---|---|---|
| facts | a fact of five digits for every 512 tokens, two at least; each is asked for | the digits after the question |
| variables | a number and a chain of variables that take it; all are asked for | the variables' names |
| words | invented words, few of them frequent; the three most frequent are asked for | these three |
| keys | eight facts; two, or one for every 1024 tokens, are asked for at the end | the digits after the questions |
| copies | a stretch of the row's own text comes back | the stretch, but its first tokens |

Numbers and names at their first mention cannot be predicted: they weigh nothing. All else in a row weighs 1. Facts are
worded as in task `needle`, variables and words as in RULER's vt and fwe (task `ruler`): what is measured is what was
taught, in other text and with other numbers.
Shapes: R rows, K inserts of a row, N segments of an insert, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .segments import Floats, Inserts, Ints, Pool, insert

KINDS = ("facts", "variables", "words", "keys", "copies")
THINGS = ("secret number", "magic number", "secret code", "special number", "password", "lucky number")
CITIES = (  # noqa: SIM905 - a list of fifty lines says no more
    "Paris London Rome Berlin Athens Lisbon Dublin Vienna Madrid Cairo Oslo Prague Warsaw Moscow Delhi Tokyo Lima "
    "Quito Havana Boston Chicago Denver Dallas Sydney Perth Geneva Milan Venice Naples Turin Seville Porto Bergen "
    "Krakow Riga Tallinn Minsk Kiev Sofia Tunis Lagos Nairobi Accra Dakar Mumbai Lahore Kabul Tehran Baghdad Damascus"
).split()
DIGITS, NAMES, WORDS, HOPS, ASKED = 5, 400, 400, 4, 3
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Dice = np.random.Generator
Line = tuple[list[Ints], list[float]]  # pieces of an insert, and what they weigh


@dataclass(frozen=True)
class Plants:
    """Plants in rows of text.

    Args of `of`: the tokenizer; `mix` the shares of KINDS, summing to 1; `answer` the weight of an answer's tokens.
    """

    mix: tuple[float, ...]
    answer: float
    pool: Ints
    start: Ints
    length: Ints
    pieces: dict[str, Ints]

    @classmethod
    def of(cls, tokenizer: Tokenizer, mix: tuple[float, ...], answer: float) -> Plants:
        """Encode all pieces once.

        Raises:
            ValueError: the shares are not those of the five kinds.
        """
        if len(mix) != len(KINDS) or abs(sum(mix) - 1) > 1e-6 or min(mix) < 0:
            raise ValueError(f"mix is {list(mix)}, expected the shares of {', '.join(KINDS)}, which sum to 1")
        pool, dice = Pool(tokenizer), np.random.default_rng(20240229)
        pieces = {name: pool.add(*texts) for name, texts in _texts(dice).items()}
        return cls(mix, answer, pool.tokens, np.array(pool.start), np.array(pool.length), pieces)

    def plant(self, hay_RL: Ints, share: float, dice: Dice) -> tuple[Ints, Floats]:
        """Tokens and weights, both [R, L], of rows of which about `share` were planted in."""
        tokens, weights = hay_RL.copy(), np.ones(hay_RL.shape, np.float32)
        kind = dice.choice(len(KINDS), len(hay_RL), p=self.mix)
        chosen = dice.random(len(hay_RL)) < share
        for number, name in enumerate(KINDS):
            rows = np.flatnonzero(chosen & (kind == number))
            if rows.size:
                make: Callable[[Ints, Dice], Inserts] = getattr(self, f"_{name}")
                tokens[rows], weights[rows] = insert(hay_RL[rows], make(hay_RL[rows], dice), self.pool)
        return tokens, weights

    def _facts(self, hay_RL: Ints, dice: Dice) -> Inserts:
        facts = min(len(CITIES), max(2, hay_RL.shape[1] // 512))
        return self._told_and_asked(len(hay_RL), facts, facts, dice)

    def _keys(self, hay_RL: Ints, dice: Dice) -> Inserts:
        return self._told_and_asked(len(hay_RL), 8, min(8, max(2, hay_RL.shape[1] // 1024)), dice)

    def _told_and_asked(self, rows: int, facts: int, asked: int, dice: Dice) -> Inserts:
        """Facts anywhere, of one thing and of several cities where there are many; each asked for after it was told."""
        things = dice.integers(len(THINGS), size=(rows, 1))
        cities = dice.random((rows, len(CITIES))).argsort(1)[:, :facts]
        number = things * len(CITIES) + cities
        digits = dice.integers(10, size=(rows, facts, DIGITS))
        told_at = dice.random((rows, facts)) * (1.0 if facts == asked else 0.9)  # then questions have the end for them
        which = dice.random((rows, facts)).argsort(1)[:, :asked]
        pick = np.take_along_axis
        after = pick(told_at, which, 1)
        asked_at = after + (1 - after) * dice.random((rows, asked))
        asked_at = asked_at if facts == asked else np.maximum(asked_at, 0.9 + 0.1 * dice.random((rows, asked)))
        told = self._number("told", number, digits, 0.0)
        question = self._number("asked", pick(number, which, 1), pick(digits, which[:, :, None], 1), self.answer)
        both = [np.concatenate([a, b], 1) for a, b in zip(told, question, strict=True)]
        return _inserts(both, np.concatenate([told_at, asked_at], 1))

    def _number(self, piece: str, which: Ints, digits: Ints, weight: float) -> tuple[Ints, Ints, Floats]:
        """A piece, then five digits, then a full stop."""
        stop = np.broadcast_to(self.pieces["stop"], (*which.shape, 1))
        parts = [self.pieces[piece][which][..., None], self.pieces["digits"][digits], stop]
        return self._segments(np.concatenate(parts, -1), [1.0, *[weight] * DIGITS, 1.0])

    def _segments(self, pieces: Ints, weights: list[float]) -> tuple[Ints, Ints, Floats]:
        weight = np.broadcast_to(np.array(weights, np.float32), pieces.shape)
        return self.start[pieces], self.length[pieces], weight

    def _variables(self, hay_RL: Ints, dice: Dice) -> Inserts:
        rows = len(hay_RL)
        names = dice.random((rows, NAMES)).argsort(1)[:, : HOPS + 1]
        digits = self.pieces["digits"][dice.integers(10, size=(rows, DIGITS))]
        name = self.pieces["name"][names].T[:, :, None]

        def fixed(what: str) -> Ints:
            return np.broadcast_to(self.pieces[what], (rows, 1))

        lines: list[Line] = [([fixed("var"), name[0], fixed("equals"), digits, fixed("end")], [1, 0, 1, *[0] * 5, 1])]
        lines += [
            ([fixed("var"), name[hop], fixed("is_var"), name[hop - 1], fixed("end")], [1, 0, 1, 1, 1])
            for hop in range(1, HOPS + 1)
        ]
        question = [fixed("list"), digits, fixed("chain"), digits, fixed("they"), *name, fixed("end")]
        numbers: list[float] = [1, *[1] * DIGITS]
        lines.append((question, [*numbers, *numbers, 1, *[self.answer] * (HOPS + 1), 1]))
        return self._stacked(lines, np.sort(dice.random((rows, HOPS + 2)), 1))

    def _stacked(self, lines: list[Line], at: NDArray[np.float64]) -> Inserts:
        """Inserts of different numbers of segments, filled up with empty ones."""
        rows, parts = len(at), []
        width = max(len(weights) for _, weights in lines)
        for pieces, weights in lines:
            joined = np.concatenate(pieces, 1)
            more = width - joined.shape[1]
            nothing = np.broadcast_to(self.pieces["nothing"], (rows, more))
            parts.append(self._segments(np.concatenate([joined, nothing], 1), [*weights, *[0.0] * more]))
        return _inserts([np.stack(part, 1) for part in zip(*parts, strict=True)], at)

    def _words(self, hay_RL: Ints, dice: Dice) -> Inserts:
        """Words fill half of the row; that of rank n comes with a share of 1 / n squared; rank 1 is dots, not asked."""
        rows, count = len(hay_RL), 20
        chosen = self.pieces["word"][dice.random((rows, WORDS)).argsort(1)[:, :count]]
        chosen[:, 0] = self.pieces["dots"]
        shares = 1 / np.arange(1, count + 1) ** 2
        longest = int(self.length[self.pieces["word"]].max())
        many = max(2 * count, hay_RL.shape[1] // (2 * longest))
        draws = dice.choice(count, size=(rows, many), p=shares / shares.sum())
        often = (draws[:, :, None] == np.arange(1, count)).sum(1)
        best = 1 + (-often).argsort(1, kind="stable")[:, :ASKED]
        answers = np.take_along_axis(chosen, best, 1)
        start, asked, end = (np.broadcast_to(self.pieces[name], (rows, 1)) for name in ("begin", "frequent", "end"))
        pieces = np.concatenate([start, np.take_along_axis(chosen, draws, 1), asked, answers, end], 1)
        parts = self._segments(pieces, [1.0, *[0.0] * many, 1.0, *[self.answer] * ASKED, 1.0])
        return _inserts([part[:, None] for part in parts], dice.random((rows, 1)))

    def _copies(self, hay_RL: Ints, dice: Dice) -> Inserts:
        """From a sixteenth to an eighth of the row comes again; its first four tokens say which part it is."""
        rows, length = hay_RL.shape
        long = dice.integers(max(8, length // 16), max(9, length // 8), size=rows)
        at = 0.25 + 0.75 * dice.random((rows,))
        cut = np.floor(at * (length - long)).astype(np.int64)
        place = np.floor(dice.random(rows) * np.maximum(cut - long, 1)).astype(np.int64)
        start = -1 - np.stack([place, place + 4], 1)
        lengths = np.stack([np.full(rows, 4), long - 4], 1)
        weight = np.broadcast_to(np.array([0.0, self.answer], np.float32), (rows, 2))
        return Inserts(start[:, None], lengths[:, None], weight[:, None], at[:, None])


def _inserts(parts: list[Any], at: NDArray[np.float64]) -> Inserts:
    start, length, weight = parts
    return Inserts(start, length, weight, at)


def _texts(dice: Dice) -> dict[str, list[str]]:
    """Everything that is ever planted, by what it is for."""
    pairs = [(thing, city) for thing in THINGS for city in CITIES]
    names = sorted({" " + "".join(dice.choice(list(LETTERS), 5)) for _ in range(2 * NAMES)})[:NAMES]
    words = sorted({" " + "".join(dice.choice(list(LETTERS.lower()), 6)) for _ in range(2 * WORDS)})[:WORDS]
    return {
        "told": [f" The {thing} of {city} is " for thing, city in pairs],
        "asked": [f"\n\nWhat is the {thing} of {city}? The {thing} of {city} is " for thing, city in pairs],
        "digits": list("0123456789"),
        "stop": ["."],
        "nothing": [""],
        "end": ["\n"],
        "var": ["\nVAR"],
        "name": names,
        "equals": [" = "],
        "is_var": [" = VAR"],
        "list": ["\n\nQuestion: Find all variables that are assigned the value "],
        "chain": [
            (
                " in the text above. Answer: According to the chain(s) of variable assignment in the text above, "
                f"{HOPS + 1} variables are assigned the value "
            )
        ],
        "they": [", they are:"],
        "word": words,
        "dots": [" ..."],
        "begin": [
            (
                "\n\nRead the following coded text and track the frequency of each coded word. Find the three most "
                "frequently appeared coded words."
            )
        ],
        "frequent": [
            (
                "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
                "frequently appeared words in the above coded text? Answer: According to the coded text above, the "
                "three most frequently appeared words are:"
            )
        ],
    }
