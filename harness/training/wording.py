"""The words of what is planted: those of the tasks `needle`, `ruler` (vt, fwe) and `passkey`, piece by piece.

Names and words are made up at random, many thousands of them, so that a model learns to find them and not to know them.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

THINGS = ("secret number", "magic number", "secret code", "special number", "password", "lucky number")
CITIES = (  # noqa: SIM905 - a list of fifty lines says no more
    "Paris London Rome Berlin Athens Lisbon Dublin Vienna Madrid Cairo Oslo Prague Warsaw Moscow Delhi Tokyo Lima "
    "Quito Havana Boston Chicago Denver Dallas Sydney Perth Geneva Milan Venice Naples Turin Seville Porto Bergen "
    "Krakow Riga Tallinn Minsk Kiev Sofia Tunis Lagos Nairobi Accra Dakar Mumbai Lahore Kabul Tehran Baghdad Damascus"
).split()
NAMES = WORDS = 16384
HOPS = 4
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
Dice = np.random.Generator


def texts(kinds: Collection[str], dice: Dice) -> dict[str, list[str]]:
    """Everything that plants of these kinds are made of, by what it is for."""
    found = {"digits": list("0123456789"), "stop": ["."], "nothing": [""], "end": ["\n"]}
    for kind, make in {"variables": _variables, "words": _words}.items():
        found |= make(dice) if kind in kinds else {}
    return found | _facts() | _passkeys()


def _facts() -> dict[str, list[str]]:
    pairs = [(thing, city) for thing in THINGS for city in CITIES]
    return {
        "told": [f" The {thing} of {city} is " for thing, city in pairs],
        "asked": [f"\n\nWhat is the {thing} of {city}? The {thing} of {city} is " for thing, city in pairs],
    }


def _variables(dice: Dice) -> dict[str, list[str]]:
    return {
        "lines": [f"{NOISE}\n"],
        "var": ["\nVAR"],
        "name": _made_up(dice, NAMES, LETTERS, 5),
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
    }


def _words(dice: Dice) -> dict[str, list[str]]:
    return {
        "word": _made_up(dice, WORDS, LETTERS.lower(), 6),
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


def _passkeys() -> dict[str, list[str]]:
    return {
        "hidden": ["A pass key is hidden in the text below, which means nothing otherwise. Find it and remember it.\n"],
        "filler": [f" {NOISE}"],
        "key_is": ["\nThe pass key is "],
        "remember": [". Remember it. "],
        "was_the_key": [" is the pass key.\n"],
        "ask_key": ["\nWhat is the pass key? The pass key is "],
    }


def _made_up(dice: Dice, count: int, alphabet: str, letters: int) -> list[str]:
    """So many different ones, each after a space."""
    found = np.unique(dice.choice(list(alphabet), (2 * count, letters)), axis=0)
    return [" " + "".join(word) for word in found[dice.permutation(len(found))[:count]]]
