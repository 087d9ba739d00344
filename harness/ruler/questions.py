"""RULER's two kinds of questions about documents: what answers them stands among others that do not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from ..rows import read_rows
from .page import Draft, Page

FIRST = [
    "Ada",
    "Bruno",
    "Clara",
    "Dario",
    "Elsa",
    "Felix",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Karla",
    "Lorenz",
    "Mira",
    "Nils",
    "Olga",
    "Paul",
    "Rosa",
    "Simon",
    "Tilda",
    "Viktor",
]
LAST = [
    "Aldern",
    "Brekke",
    "Corvin",
    "Dahlen",
    "Ebersol",
    "Falk",
    "Grunau",
    "Holm",
    "Ivarsen",
    "Jessen",
    "Kirwan",
    "Lunde",
    "Morath",
    "Norden",
    "Ostrow",
    "Prill",
]
TOWNS = [
    "Altmar",
    "Birkow",
    "Casselby",
    "Dornfeld",
    "Elmstead",
    "Farrow",
    "Gladmoor",
    "Hestvik",
    "Ironby",
    "Jarrowdale",
    "Kelmscar",
    "Lindow",
    "Marrick",
]
TRADES = [
    "baker",
    "carpenter",
    "glazier",
    "miller",
    "painter",
    "printer",
    "saddler",
    "shipwright",
    "smith",
    "teacher",
    "weaver",
    "clockmaker",
]
RIVERS = ["Arle", "Brisk", "Calder", "Dunn", "Esk", "Foss", "Greta", "Hull", "Irwell", "Kenn", "Lune", "Medlow", "Nidd"]


@dataclass(frozen=True)
class Known:
    """A question, the texts that count as right, and the documents that it takes to answer it."""

    query: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Questions:
    """qa_1 takes one document, qa_2 two. Documents are the user's (SQuAD, HotpotQA), else made up here."""

    hops: int
    new: int = 32

    def draft(self, page: Page) -> Draft:
        """The documents needed, and as many others as fit, in a random order."""
        known = _given(page.documents) if page.documents else _made(page.dice, self.hops, max(100, page.tokens // 20))
        asked = page.dice.choice(known)
        order = (
            "Answer the question based on the given documents. Only give me the answer and do not output any other "
            "words."
        )
        head = f"{order}\n\nThe following are given documents.\n\n"
        tail = f"{order}\n\nQuestion: {asked.query} Answer:"
        room = page.tokens - page.size(head) - page.size(tail)
        chosen = list(asked.documents)
        room -= sum(page.size(f"Document 9999:\n{d}\n\n") for d in chosen)
        others = sorted({d for k in known for d in k.documents} - set(chosen))
        page.dice.shuffle(others)
        for other in others:
            size = page.size(f"Document 9999:\n{other}\n\n")
            if size <= room:
                chosen.append(other)
                room -= size
        page.dice.shuffle(chosen)
        texts = (f"Document {n}:\n{document}\n\n" for n, document in enumerate(chosen, 1))
        return page.draft(head, [t for text in texts for t in page.session.encode(text)], tail, asked.answers)


def _given(name: str) -> Sequence[Known]:
    rows = read_rows(name, ("question", "answers", "context"))
    return [
        Known(
            r["question"], tuple(r["answers"]), tuple([r["context"]] if isinstance(r["context"], str) else r["context"])
        )
        for r in rows
    ]


def _made(dice: random.Random, hops: int, count: int) -> Sequence[Known]:
    """People who never lived in towns that nobody built: nothing here can be known but from the documents."""
    rivers = dict(zip(TOWNS, dice.sample(RIVERS, len(TOWNS)), strict=True))
    people = dice.sample([f"{a} {m}. {b}" for a in FIRST for m in ascii_uppercase for b in LAST], count)
    found = []
    for person in people:
        town, trade = dice.choice(TOWNS), dice.choice(TRADES)
        life = (
            f"{person} was born in {town}, learned to be a {trade}, and lived to be {dice.randrange(40, 99)} years old."
        )
        place = f"{town} is a town on the river {rivers[town]}."
        if hops == 1:
            found.append(Known(f"In which town was {person} born?", (town,), (life,)))
        else:
            found.append(Known(f"On which river is the town where {person} was born?", (rivers[town],), (life, place)))
    return found
