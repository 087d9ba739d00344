"""What is planted in training text: it can be answered, it is worded as the tasks ask, it cannot be known by heart."""

import random
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from lacuna.harness.ruler.lists import Frequent, Variables
from lacuna.harness.ruler.page import Page
from lacuna.harness.tasks.needle import Fact
from lacuna.harness.tasks.passkey import Passkey
from lacuna.harness.training.batches import Batches
from lacuna.harness.training.corpus import documents
from lacuna.harness.training.plants import KINDS, Plants
from lacuna.harness.training.schedule import Part
from lacuna.harness.training.segments import Inserts, insert
from lacuna.harness.training.shards import Shards, write_shards
from lacuna.harness.training.vocabulary import learn
from lacuna.harness.training.wording import texts

TEXTS = [text[:30000] for text in documents(["calibration"])]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    tokenizer = learn(TEXTS, 400)
    write_shards(TEXTS, tokenizer, folder, shard_tokens=20000)
    return Shards.open(folder)


def part(rows=8, length=900):
    return Part(0, 0, rows, length, 1.0, last=True)


def planted(shards, kind, seed=1):
    """Rows of one kind: tokens, their texts, and the weights of each token."""
    mix = tuple(float(kind == k) for k in KINDS)
    made = Batches(shards, seed, Plants.of(shards.tokenizer, mix, 4.0)).make(part())
    ids = np.concatenate([made.ids, made.targets[:, -1:]], 1)
    weights = np.concatenate([np.ones((len(ids), 1)), made.weights], 1)
    return ids, [shards.tokenizer.decode(row.tolist()) for row in ids], weights


@pytest.mark.parametrize("kind", KINDS)
def test_plants_can_be_answered(shards, kind):
    """What is asked for must stand in the row before the question, or the model learns to guess."""
    mix = tuple(float(kind == k) for k in KINDS)
    made = Batches(shards, 1, Plants.of(shards.tokenizer, mix, 4.0)).make(part())
    for ids, targets, weights in zip(made.ids, made.targets, made.weights, strict=True):
        asked = weights == (20 if kind == "words" else 4)
        assert asked.sum() >= 3
        for run in np.split(np.flatnonzero(asked), np.flatnonzero(np.diff(np.flatnonzero(asked)) > 1) + 1):
            answer = shards.tokenizer.decode(targets[run].tolist())
            before = shards.tokenizer.decode(ids[: run[0] + 1].tolist())
            missing = [word for word in answer.split() if word not in before]
            assert not missing or kind == "copies"
            if kind == "copies":
                text = ids.tolist()
                assert any(text[i : i + len(run)] == targets[run].tolist() for i in range(run[0] - len(run)))


def test_frequent_words_are_the_most_frequent(shards):
    """A wrong answer in a third of the rows would be learned as such."""
    made = Batches(shards, 2, Plants.of(shards.tokenizer, (0, 0, 1, 0, 0, 0), 4.0)).make(part(6, 900))
    for ids, targets, weights in zip(made.ids, made.targets, made.weights, strict=True):
        text = shards.tokenizer.decode(ids.tolist())
        listed = text.split("coded words.")[1].split("\nQuestion")[0].split()
        counts = sorted({w: listed.count(w) for w in listed if w != "..."}.values(), reverse=True)[:3]
        answers = shards.tokenizer.decode(targets[weights == 20].tolist()).split()
        assert [listed.count(w) for w in answers] == counts


def test_insert_is_what_a_loop_gives():
    """The one gather for a batch must put together what one would by hand."""
    dice = np.random.default_rng(0)
    pool, hay = np.arange(1000, 1050), np.arange(300).reshape(3, 100)
    start, length = dice.integers(0, 40, (3, 4, 2)), dice.integers(0, 6, (3, 4, 2))
    start[:, 1, 0] = -1 - 7  # from the row's own hay
    weight, at = dice.random((3, 4, 2)).astype(np.float32), dice.random((3, 4))
    ground = np.array([1.0, 0.5, 0.0], np.float32)
    tokens, weights = insert(hay, Inserts(start, length, weight, at), pool, ground)
    for r in range(3):
        room = 100 - length[r].sum()
        out, told, done = [], [], 0
        for k in sorted(range(4), key=lambda k: at[r, k]):
            cut = int(at[r, k] * room)
            out += hay[r, done:cut].tolist()
            told += [ground[r]] * (cut - done)
            done = cut
            for n in range(2):
                source = hay[r, -1 - start[r, k, n] :] if start[r, k, n] < 0 else pool[start[r, k, n] :]
                out += source[: length[r, k, n]].tolist()
                told += [weight[r, k, n]] * length[r, k, n]
        assert tokens[r].tolist() == [*out, *hay[r, done:room].tolist()]
        assert weights[r].tolist() == pytest.approx([*told, *[ground[r]] * (room - done)])


def session(shards):
    return SimpleNamespace(
        encode=lambda text: shards.tokenizer.encode(text, add_special_tokens=False).ids, cell=SimpleNamespace(seed=0)
    )


def asked(shards, kind):
    """Tokens of the question as the task asks it, none of them before the answer."""
    asking = session(shards)
    page = Page(asking, 900, random.Random(0), None)
    tasks = {
        "facts": lambda: asking.encode(Fact("secret number", "Paris", "12345").question),
        "variables": lambda: Variables().draft(page).question,
        "words": lambda: Frequent().draft(page).question,
        "passkeys": lambda: Passkey(length=512).question(asking, 0).turns[0],
    }
    return tasks["facts" if kind == "keys" else kind]()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "copies"])
def test_questions_are_those_of_the_tasks(shards, kind):
    """A question in other words, or cut into other tokens, would be taught in vain."""

    def plain(ids):
        text = "\x00".join(shards.tokenizer.id_to_token(i) for i in ids)
        for name in ("secret number", "Paris"):
            text = text.replace("\x00".join(shards.tokenizer.encode(f" {name}").tokens), "NAME")
        return re.sub(r"\d", "0", text)

    question = plain(asked(shards, kind))
    fact = kind in ("facts", "keys")
    rows = [row.tolist() for seed in range(40 if fact else 1) for row in planted(shards, kind, seed)[0]]
    found = [question in plain(row) for row in rows]
    assert any(found) if fact else all(found)


def test_passkeys_stand_in_the_tasks_filler(shards):
    """A key that was always taught in prose is not looked for between lines that say nothing."""
    asking = session(shards)
    whole = Passkey(length=900).question(asking, 0).context
    _, rows, weights = planted(shards, "passkeys")
    text = shards.tokenizer.decode(whole)
    key = re.search(r"\nThe pass key is (\d+)\. Remember it\. \1 is the pass key\.\n", text)
    for row in rows:
        assert re.search(r"\nThe pass key is (\d+)\. Remember it\. \1 is the pass key\.\n", row)
        assert row.startswith(text[: text.index("\n") + 1])
    filler = [n for n, row in enumerate(rows) if text[key.end() :][:200] in row]
    assert 0 < len(filler) < len(rows)
    assert (weights[filler] == 0).mean() > 0.5


@pytest.mark.parametrize("kind", ["facts", "keys"])
def test_facts_are_told_apart_by_thing_and_city(shards, kind):
    """A model that looks for the city alone would miss every second one of eight keys."""
    _, rows, _ = planted(shards, kind)
    shared = 0
    for row in rows:
        facts = re.findall(r"(?<!\?) The ([a-z]+ ?[a-z]*) of ([A-Z][a-z]+) is \d{5}\.", row)
        assert len(facts) == len(set(facts)) == (8 if kind == "keys" else 2)
        shared += max(Counter(city for _, city in facts).values()) > 1
    assert shared >= (kind == "keys")


@pytest.mark.parametrize("kind", ["facts", "keys"])
def test_some_rows_begin_with_a_fact(shards, kind):
    """A needle at depth 0 is a text's first token: a model that never saw a fact there does not find it."""
    rows = [row for seed in range(40) for row in planted(shards, kind, seed)[1]]
    told = [re.match(r" The ([a-z]+ [a-z]+|[a-z]+) of ([A-Z][a-z]+) is (\d{5})\.", row) for row in rows]
    assert 0.1 < sum(map(bool, told)) / len(rows) < 0.3
    asked = [f"? The {m[1]} of {m[2]} is {m[3]}." in row for m, row in zip(told, rows, strict=True) if m]
    assert any(asked) if kind == "keys" else all(asked)


@pytest.mark.parametrize(("kind", "piece", "alphabet"), [("words", "word", 26), ("variables", "name", 26)])
def test_made_up_names_are_drawn_from_all(kind, piece, alphabet):
    """Names of the alphabet's first half alone, or a few hundred, would be known by heart, and others not found."""
    found = texts([kind], np.random.default_rng(0))[piece]
    assert len(set(found)) == len(found) >= 10000
    for place in range(1, len(found[0])):
        counts = Counter(name[place] for name in found)
        assert len(counts) == alphabet
        assert max(counts.values()) < 1.3 * len(found) / alphabet
    assert len({name.lower()[1] for name in found[:200]}) == alphabet


def test_listed_words_are_lessons(shards):
    """A few answers in thousands of tokens teach counting slowly: each listed word says how often it comes."""
    ids, rows, weights = planted(shards, "words")
    for row, text, weight in zip(ids, rows, weights, strict=True):
        listed = text.split("coded words.")[1].split("\nQuestion")[0]
        told = shards.tokenizer.decode(row[weight == 0.5].tolist())
        assert told == listed
        counts = Counter(listed.split())
        shares = [count / counts["..."] for _, count in counts.most_common(3)[1:]]
        assert shares == pytest.approx([1 / 4, 1 / 9], abs=0.06)
