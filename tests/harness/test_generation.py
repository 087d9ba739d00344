"""Answers: what ends them, how they are drawn, and that nothing depends on who shares a batch."""

import random
from collections import Counter

import pytest
import torch

from lacuna.harness import generation
from lacuna.harness.generation import Question, Rule, ask, choose

TEXTS = (
    "The king said to the queen that",
    "Once upon a time there was",
    "It was",
    "He came into the room, and there he saw",
)


def questions(session, texts=TEXTS, **more):
    """A question for each text, its last word the question."""
    made = []
    for number, text in enumerate(texts):
        context, _, last = text.rpartition(" ")
        made.append(Question(f"q{number}", session.encode(context), (session.encode(f" {last}"),), **more))
    return made


def verbatim(_question, reply):
    """The judge that keeps what was said."""
    return {"text": reply.texts[0], "tokens": list(reply.tokens[0])}


def stock_reply(lm, text, new):
    """Greedy decoding by transformers itself, one text at a time, without cache or padding."""
    return stock_reply_of(lm, lm.encode(text), new)


def test_greedy_answers_are_those_of_transformers(lm, under):
    """Padding, batches or the cache would change what a model says, and every score with it."""
    want = [stock_reply(lm, text, 12) for text in TEXTS]
    with under() as session:
        got = ask(session, questions(session), Rule(12, to_the_end=False), verbatim)
    assert [g["tokens"] for g in got] == want
    assert [g["prompt_tokens"] for g in got] == [len(lm.encode(t)) for t in TEXTS]


@pytest.mark.parametrize(
    "method", ["full", {"topk": {"rows": 4}}, {"streaming_llm": {"rows": 10}}, {"h2o": {"rows": 8}}]
)
def test_answers_do_not_depend_on_the_batch(under, monkeypatch, method):
    """A score that changes with the batch size, or with who ends first beside it, cannot be compared."""
    found = []
    for at_once in (1, 10_000):
        monkeypatch.setattr(generation, "TOKENS_AT_ONCE", at_once)
        with under(method) as session:
            asked = questions(session, [*TEXTS, TEXTS[0]])
            samples = ask(session, asked, Rule(10, stops=(" the",), to_the_end=False), verbatim)
            found.append(([{k: v for k, v in s.items() if k != "answer_s"} for s in samples], session.sums()[:, 1]))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])  # the ledger of the decode rows too
    assert len({s["completion_tokens"] for s in found[0][0]}) > 1


def test_stops_cut_the_answer_and_end_it(lm, under):
    """An answer that runs on is scored for what the model rambles after it."""
    whole = lm.tokenizer.decode(stock_reply(lm, TEXTS[0], 30))
    stop = whole[14:17]
    with under() as session:
        (got,) = ask(session, questions(session, TEXTS[:1]), Rule(30, stops=("@@", stop)), verbatim)
    assert got["text"] == whole[: whole.index(stop)]
    assert got["completion_tokens"] < 30
    assert stop in lm.tokenizer.decode(got["tokens"])
    assert stop not in lm.tokenizer.decode(got["tokens"][:-1])


def test_the_end_token_ends_an_answer(lm, under, monkeypatch):
    """A chat model that ends its turn would be read on into a turn of its own making."""
    third = stock_reply(lm, TEXTS[0], 3)[2]
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", [third])
    with under() as session:
        got = ask(session, questions(session, TEXTS[:1]), Rule(8), verbatim)[0]
    with under() as session:
        on = ask(session, questions(session, TEXTS[:1]), Rule(8, to_the_end=False), verbatim)[0]
    assert (got["completion_tokens"], on["completion_tokens"]) == (3, 8)
    assert got["text"] == lm.tokenizer.decode(got["tokens"][:-1])


def test_turns_go_on_from_the_same_cache(lm, under):
    """A second turn must see the first one's question and answer, and nothing twice."""
    first, second = lm.encode(" The king"), lm.encode(". The queen")
    context = lm.encode("Once upon a time there were a king and a queen.")
    with under() as session:
        question = Question("t", context, (first, second))
        (got,) = ask(session, [question], Rule(5, to_the_end=False), lambda _, r: {"tokens": r.tokens})
    one = stock_reply_of(lm, [*context, *first], 5)
    two = stock_reply_of(lm, [*context, *first, *one, *second], 5)
    assert [list(t) for t in got["tokens"]] == [one, two]
    assert got["completion_tokens"] == 10


@torch.no_grad()
def stock_reply_of(lm, ids, new):
    """The same from tokens."""
    ids = list(ids)
    for _ in range(new):
        ids.append(int(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[-new:]


def test_drawn_tokens_have_the_right_shares():
    """Sampling that favours a token, or takes one outside top-p, gives a wrong pass@k."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    dice = random.Random(1)
    drawn = Counter(int(choose(logits, Rule(1, temperature=1.0), [dice])) for _ in range(4000))
    assert [drawn[i] / 4000 for i in range(4)] == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    kept = Counter(int(choose(logits, Rule(1, temperature=1.0, top_p=0.7), [dice])) for _ in range(2000))
    assert set(kept) == {0, 1}
    assert kept[0] / 2000 == pytest.approx(0.5 / 0.8, abs=0.04)
    cold = Counter(int(choose(logits, Rule(1, temperature=0.5), [dice])) for _ in range(2000))
    assert cold[0] / 2000 == pytest.approx(0.25 / (0.25 + 0.09 + 0.0225 + 0.0025), abs=0.04)


def test_drawn_answers_are_the_samples_own(under, monkeypatch):
    """Dice shared by a batch would make a sample depend on the others; dice without a seed on the day."""
    found = {}
    for seed, at_once in ((0, 1), (0, 10_000), (1, 10_000)):
        monkeypatch.setattr(generation, "TOKENS_AT_ONCE", at_once)
        with under(seed=seed) as session:
            samples = ask(session, questions(session), Rule(8, to_the_end=False, temperature=1.0), verbatim)
            found[seed, at_once] = [s["text"] for s in samples]
    assert found[0, 1] == found[0, 10_000] != found[1, 10_000]
