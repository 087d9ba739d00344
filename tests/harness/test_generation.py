"""Answers: what ends them, how they are drawn, and that nothing depends on who shares a batch."""

import random
from collections import Counter

import pytest
import torch

from lacuna.harness import generation
from lacuna.harness.generation import Question, Rule, ask, choose
from lacuna.harness.journal import Journal
from lacuna.harness.lm import Session
from lacuna.models.ledger import summary

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


@pytest.mark.parametrize("query_aware", [False, True])
def test_what_is_prefilled_and_what_is_fed(lm, under, query_aware):
    """A cache that was compressed with the question in view is another protocol than one that was compressed before."""
    contexts, asks = (
        (lm.encode("Once there were a king and a queen."), lm.encode("He saw her.")),
        lm.encode(" The old king"),
    )
    asked = [Question(f"q{i}", c, (asks,)) for i, c in enumerate(contexts)]
    with under(query_aware=query_aware) as session:
        got = ask(session, asked, Rule(3, to_the_end=False), verbatim)
        whole = summary([session.sums()])
    counted = {phase: whole[phase]["tokens"] for phase in ("prefill", "decode")}
    seen = sum(map(len, contexts)) + (2 * (len(asks) - 1) if query_aware else 0)
    assert counted == {"prefill": seen, "decode": 2 * ((1 if query_aware else len(asks)) + 3 - 1)}
    assert [g["prompt_tokens"] for g in got] == [len(c) + len(asks) for c in contexts]
    assert [g["tokens"] for g in got] == [stock_reply_of(lm, [*c, *asks], 3) for c in contexts]


def test_later_turns_are_fed_to_the_compressed_cache(lm, under):
    """A second question that is prefilled would be answered from a cache that was compressed knowing it."""
    context, first, second = (lm.encode(t) for t in ("Once there were a king and a queen.", " The king", ". The queen"))
    with under({"snapkv": {"rows": 4, "window": 2}}) as session:
        (got,) = ask(
            session, [Question("t", context, (first, second))], Rule(5, to_the_end=False), lambda _, r: {"n": r.tokens}
        )
        counted = summary([session.sums()])
    assert counted["prefill"]["tokens"] == len(context)
    assert (
        counted["decode"]["tokens"] == len(first) + 5 - 1 + 1 + len(second) + 5 - 1
    )  # the last of a turn opens the next
    assert got["completion_tokens"] == 10
    rows = [4 + n for n in range(1, int(counted["decode"]["tokens"]) + 1)]  # what the cut left, and what came since
    assert counted["decode"]["rows_attended_mean"] == pytest.approx(sum(rows) / len(rows))


def test_length_and_time_of_an_answer(lm, under, monkeypatch):
    """A compressed model that rambles looks as good as one that answers at once, unless both are told."""
    now = [0.0]
    monkeypatch.setattr(generation.time, "perf_counter", lambda: now[0])
    for name, seconds in (("start", 100.0), ("step", 1.0)):
        own = getattr(Session, name)
        monkeypatch.setattr(Session, name, lambda *a, own=own, s=seconds: (now.__setitem__(0, now[0] + s), own(*a))[1])
    texts = ("It was", "He was")
    replies = [stock_reply(lm, t, 6) for t in texts]
    end = next(t for t in replies[0] if t not in replies[1])  # ends the first answer alone
    length = replies[0].index(end) + 1
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", end)
    with under() as session:
        samples = ask(session, questions(session, texts), Rule(6), verbatim)
    assert [s["completion_tokens"] for s in samples] == [length, 6]  # the end is counted, and cut off the text
    assert [s["answer_s"] for s in samples] == [100 + length - 1, 100 + 5]  # an early end is an early answer
    mean = generation.output(samples)
    assert mean == {"completion_tokens_mean": (length + 6) / 2, "answer_s_mean": 100 + (length - 1 + 5) / 2}


def test_texts_beyond_the_model_are_told(lm, under, monkeypatch):
    """A score of nothing but unseen positions would be read as the method's."""
    told = []
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", 8)
    with under(journal=Journal(tell=told.append)) as session:
        ask(session, questions(session, TEXTS[:1]), Rule(4), verbatim)
    longest = len(lm.encode(TEXTS[0])) + 4
    assert told == [f"  texts of {longest} tokens, the model was made for 8: none is cut"]
