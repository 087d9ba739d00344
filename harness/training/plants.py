"""What is planted in training text so that a small model learns to retrieve: six kinds, mixed as asked.

| kind | in the row | what weighs `answer` times in the loss |
|---|---|---|
| facts | a fact of five digits for every 512 tokens, two at least; each is asked for | the digits after the question |
| variables | a number and a chain of variables that take it; all are asked for | the variables' names |
| words | invented words, few are frequent; the three most frequent are asked for | these three, COUNTED times that |
| keys | eight facts; two, or one for every 512 tokens, are asked for at the end | the digits after the questions |
| copies | a stretch of the row's own text comes back | the stretch, but its first tokens |
| passkeys | a number of one to five digits, asked for at the end | the digits after the question |

Frequent words are learned last: their answers are few tokens, and the second and third must leave out what was said.
Numbers and names at their first mention cannot be predicted: they weigh nothing. The listed words weigh LISTED: each is
a lesson in how often which word came. All else in a row weighs 1. Wordings are those of the tasks that measure it
afterwards (`wording.py`): in other text, with other numbers and made-up names. Of the variables and the passkeys half
stand between the lines that say nothing of these tasks; those weigh nothing.
Shapes: R rows, K inserts of a row, N segments of an insert, L tokens of a row, W different words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .segments import Floats, Inserts, Ints, Pool, insert
from .wording import CITIES, HOPS, THINGS, Dice, texts

KINDS = ("facts", "variables", "words", "keys", "copies", "passkeys")
GROUNDS = {"variables": "lines", "passkeys": "filler"}  # what half of a kind's rows are made of in place of text
DIGITS, ASKED, CONFUSED, LISTED, COUNTED = 5, 3, 3, 0.5, 5.0
OPENS = 0.2  # of the rows with facts begin with one: a text's first tokens draw attention of all, and are read badly
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
            ValueError: the shares are not those of the six kinds.
        """
        if len(mix) != len(KINDS) or abs(sum(mix) - 1) > 1e-6 or min(mix) < 0:
            raise ValueError(f"mix is {list(mix)}, expected the shares of {', '.join(KINDS)}, which sum to 1")
        pool, dice = Pool(tokenizer), np.random.default_rng(20240229)
        kinds = [kind for kind, share in zip(KINDS, mix, strict=True) if share]
        pieces = {name: pool.add(*found) for name, found in texts(kinds, dice).items()}
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
                hay, weight = self._ground(GROUNDS.get(name), hay_RL[rows], dice)
                tokens[rows], weights[rows] = insert(hay, make(hay, dice), self.pool, weight)
        return tokens, weights

    def _ground(self, piece: str | None, hay_RL: Ints, dice: Dice) -> tuple[Ints, Floats]:
        """Tokens [R, L] to plant in and what they weigh, [R]: half of the rows are this piece over and over."""
        if piece is None:
            return hay_RL, np.ones(len(hay_RL), np.float32)
        number = self.pieces[piece][0]
        said = self.pool[self.start[number] :][: self.length[number]]
        is_text = dice.random(len(hay_RL)) < 0.5
        return np.where(is_text[:, None], hay_RL, np.resize(said, hay_RL.shape[1])), is_text.astype(np.float32)

    def _facts(self, hay_RL: Ints, dice: Dice) -> Inserts:
        facts = min(len(CITIES), max(2, hay_RL.shape[1] // 512))
        return self._told_and_asked(len(hay_RL), facts, facts, dice)

    def _keys(self, hay_RL: Ints, dice: Dice) -> Inserts:
        return self._told_and_asked(len(hay_RL), 8, min(8, max(2, hay_RL.shape[1] // 512)), dice)

    def _told_and_asked(self, rows: int, facts: int, asked: int, dice: Dice) -> Inserts:
        """Facts anywhere, in OPENS of the rows one at the very start; each asked for after it was told."""
        number = self._confused(rows, facts, dice)
        digits = dice.integers(10, size=(rows, facts, DIGITS))
        told_at = dice.random((rows, facts)) * (1.0 if facts == asked else 0.9)  # then questions have the end for them
        told_at[dice.random(rows) < OPENS, 0] = 0.0
        which = dice.random((rows, facts)).argsort(1)[:, :asked]
        pick = np.take_along_axis
        after = pick(told_at, which, 1)
        asked_at = after + (1 - after) * dice.random((rows, asked))
        asked_at = asked_at if facts == asked else np.maximum(asked_at, 0.9 + 0.1 * dice.random((rows, asked)))
        told = self._number("told", number, digits, 0.0)
        question = self._number("asked", pick(number, which, 1), pick(digits, which[:, :, None], 1), self.answer)
        both = [np.concatenate([a, b], 1) for a, b in zip(told, question, strict=True)]
        return _inserts(both, np.concatenate([told_at, asked_at], 1))

    def _confused(self, rows: int, facts: int, dice: Dice) -> Ints:
        """Different facts of few things and few cities, so that neither alone says which is asked for."""
        few = max(facts, 2 * CONFUSED) // CONFUSED + 1
        things = dice.random((rows, len(THINGS))).argsort(1)[:, :CONFUSED]
        cities = dice.random((rows, len(CITIES))).argsort(1)[:, : max(10, few)]
        pairs = (things[:, :, None] * len(CITIES) + cities[:, None]).reshape(rows, -1)
        return np.take_along_axis(pairs, dice.random(pairs.shape).argsort(1)[:, :facts], 1)

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
        digits = self.pieces["digits"][dice.integers(10, size=(rows, DIGITS))]
        name = self._different("name", rows, HOPS + 1, dice).T[:, :, None]

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

    def _different(self, piece: str, rows: int, count: int, dice: Dice) -> Ints:
        """Numbers [R, count] of different pieces of a kind: each is drawn from a range of its own, these are mixed."""
        known = self.pieces[piece]
        wide = len(known) // count
        drawn = np.arange(count) * wide + dice.integers(wide, size=(rows, count))
        return known[dice.permuted(drawn, axis=1)]

    def _words(self, hay_RL: Ints, dice: Dice) -> Inserts:
        """A quarter of the row to all of it; the word of rank n has a share of 1 / n squared; rank 1 is dots."""
        rows, length = hay_RL.shape
        chosen_RW = self._different("word", rows, max(20, length // 50), dice)
        chosen_RW[:, 0] = self.pieces["dots"]
        answers = chosen_RW[:, 1 : 1 + ASKED]
        start, asked, end = (np.broadcast_to(self.pieces[name], (rows, 1)) for name in ("begin", "frequent", "end"))
        around = np.concatenate([start, asked, answers, end], 1)
        room = (length - self.length[around].sum(1)) * 4.0 ** -dice.random(rows)
        order = self._drawn(chosen_RW, np.maximum(room, min(length // 2, 400)), dice)
        listed = np.take_along_axis(np.concatenate([chosen_RW, end * 0 + self.pieces["nothing"]], 1), order, 1)
        pieces = np.concatenate([start, listed, asked, answers, end], 1)
        weights = [1.0, *[LISTED] * listed.shape[1], 1.0, *[COUNTED * self.answer] * ASKED, 1.0]
        return _inserts([part[:, None] for part in self._segments(pieces, weights)], dice.random((rows, 1)))

    def _drawn(self, chosen_RW: Ints, room_R: NDArray[np.float64], dice: Dice) -> Ints:
        """Ranks in any order, [R, N], as many as the room has for the words, W where a row has no more.

        The asked ones are strictly more frequent than what follows, as short rows would not have it by themselves.
        """
        rows, words = chosen_RW.shape
        share_W = 1 / np.arange(1, words + 1) ** 2
        fits = room_R / (share_W * self.length[chosen_RW]).sum(1)
        counts = np.floor(fits[:, None] * share_W).astype(np.int64)
        for rank in range(ASKED, 0, -1):
            counts[:, rank] = np.maximum(counts[:, rank], counts[:, rank + 1] + 1)
        most = counts.sum(1).max()
        order = np.full((rows, most), words)
        for row, count in enumerate(counts):
            order[row, : count.sum()] = dice.permutation(np.repeat(np.arange(words), count))
        return order

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

    def _passkeys(self, hay_RL: Ints, dice: Dice) -> Inserts:
        """The head first, the key anywhere, the question last."""
        rows = len(hay_RL)
        key = dice.integers(1, 50001, size=rows)
        place = 10 ** np.arange(DIGITS)[::-1]
        digits = np.where(
            key[:, None] >= place, self.pieces["digits"][key[:, None] // place % 10], self.pieces["nothing"]
        )

        def fixed(what: str) -> Ints:
            return np.broadcast_to(self.pieces[what], (rows, 1))

        once, answer = [0.0] * DIGITS, [self.answer] * DIGITS
        lines: list[Line] = [
            ([fixed("hidden")], [1]),
            (
                [fixed("key_is"), digits, fixed("remember"), digits, fixed("was_the_key")],
                [1, *once, 1, *[1] * DIGITS, 1],
            ),
            ([fixed("ask_key"), digits, fixed("stop")], [1, *answer, self.answer]),
        ]
        anywhere = dice.random((rows, 1))
        return self._stacked(lines, np.concatenate([0 * anywhere, anywhere, 0 * anywhere + 1], 1))


def _inserts(parts: list[Any], at: NDArray[np.float64]) -> Inserts:
    start, length, weight = parts
    return Inserts(start, length, weight, at)
