"""The named protocols of perplexity, each against its definition written down once more."""

import gzip
import json
import math

import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from lacuna.analysis.headlines import headline
from lacuna.analysis.stats import perplexity
from lacuna.cli import main
from lacuna.harness.tasks.perplexity import Perplexity
from lacuna.harness.windows import cut
from lacuna.jobs.sweep import SweepError
from lacuna.results.store import Store


@torch.no_grad()
def losses(lm, ids):
    """Negative log-likelihoods of all tokens but the first, from one pass of transformers' own."""
    logits = lm.model(torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
    return (-torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]).tolist()


@pytest.fixture
def corpus(tmp_path):
    """Two short documents."""
    path = tmp_path / "two.jsonl"
    path.write_text('{"body": "The king was in the garden. He saw the queen there."}\n'
                    '{"body": "It rained all day, and the river rose to the doors of the house on the hill."}\n')  # fmt: skip
    return path


def measured(sweep, run, corpus, **args):
    """The metrics of full attention under these arguments."""
    given = ", ".join(f"{k}: {v}" for k, v in args.items())
    records, _ = run(sweep(f"method: full\ntask: {{perplexity: {{corpus: {corpus}, field: body, {given}}}}}\n", "p"))
    (record,) = records.values()
    assert record.status == "ok", record.reason
    return record


def stream_texts(corpus):
    """The documents."""
    return [json.loads(line)["body"] for line in corpus.read_text().splitlines()]


def stream(lm, corpus):
    """All documents with an empty line between."""
    return lm.encode("\n\n".join(stream_texts(corpus)))


def test_loki_s_windows(lm, sweep, run, corpus):
    """The published tables are means of windows, the last and short one among them; a mean of tokens is another number."""
    ids = stream(lm, corpus)
    record = measured(sweep, run, corpus, window=10, windows="null", join="stream", rest="keep", average="windows")
    parts = [losses(lm, ids[i : i + 10]) for i in range(0, len(ids), 10)]
    parts = [p for p in parts if p]
    assert len({len(p) for p in parts}) == 2  # the last window is shorter
    means = [sum(p) / len(p) for p in parts]
    assert record.metrics["perplexity"] == pytest.approx(math.exp(sum(means) / len(means)), rel=1e-5)
    by_token = math.exp(sum(map(sum, parts)) / sum(map(len, parts)))
    assert record.metrics["perplexity_tokens"] == pytest.approx(by_token, rel=1e-5)
    assert by_token != pytest.approx(record.metrics["perplexity"], rel=1e-3)
    values = headline("perplexity").values(record.samples)  # what tables and intervals are made of
    assert perplexity.value(values) == pytest.approx(record.metrics["perplexity"], rel=1e-9)


def test_a_stride_scores_every_token_once_with_more_context(lm, sweep, run, corpus):
    """Tokens scored twice or never would weigh wrongly."""
    ids = stream(lm, corpus)
    record = measured(sweep, run, corpus, window=12, windows="null", join="stream", stride=4)
    want = losses(lm, ids[:12])
    for start in range(4, len(ids) - 11, 4):
        want += losses(lm, ids[start : start + 12])[-4:]
    assert record.metrics["tokens"] == len(want)
    assert record.metrics["nll_nats_per_token"] == pytest.approx(sum(want) / len(want), rel=1e-5)


def test_only_the_tail_is_scored_after_a_prompt(lm, sweep, run, corpus):
    """A budget that is a share of the prompt means nothing where the prompt is one token."""
    ids = stream(lm, corpus)
    record = measured(sweep, run, corpus, window=16, windows=1, join="stream", prompt=12)
    assert record.metrics["nll_nats_per_token"] == pytest.approx(sum(losses(lm, ids[:16])[-4:]) / 4, rel=1e-5)
    assert (record.ledger["prefill"]["tokens"], record.ledger["decode"]["tokens"]) == (11, 4)
    assert [s["prompt_tokens"] for s in record.samples] == [12]


def test_documents_that_are_too_short_are_passed_over(lm, sweep, run, corpus):
    """A corpus of short documents would look empty because its first one is short."""
    second = lm.encode(stream_texts(corpus)[1])
    room = len(lm.encode(stream_texts(corpus)[0])) + 1
    assert len(second) >= room
    record = measured(sweep, run, corpus, window=room, windows=1)
    assert record.metrics["nll_nats_per_token"] == pytest.approx(sum(losses(lm, second[:room])) / (room - 1), rel=1e-5)


def test_a_window_that_begins_with_bos(lm, under, corpus):
    """A first token without the mark that the model was trained to begin with is scored too badly."""
    ids, token = stream(lm, corpus), 7
    task = Perplexity(str(corpus), "body", window=9, windows=2, join="stream", bos="window")
    before, lm.tokenizer.bos_token = lm.tokenizer.bos_token, lm.tokenizer.convert_ids_to_tokens(token)
    try:
        with under() as session:
            outcome = task.run(session)
    finally:
        lm.tokenizer.bos_token = before
    want = losses(lm, [token, *ids[:8]]) + losses(lm, [token, *ids[8:16]])
    assert outcome.metrics["nll_nats_per_token"] == pytest.approx(sum(want) / 16, rel=1e-5)
    with under() as session, pytest.raises(ValueError, match="no beginning-of-sequence token"):
        task.run(session)


@pytest.mark.parametrize("join", ["stream", "documents"])
def test_a_stream_or_each_document_begins_with_bos(lm, under, corpus, join):
    """Loki's protocol has the mark before the whole text alone; before each window it is another number."""
    token, texts = 7, stream_texts(corpus)
    streams = [stream(lm, corpus)] if join == "stream" else [lm.encode(t) for t in texts]
    task = Perplexity(str(corpus), "body", window=8, windows=None, join=join, bos="stream")
    before, lm.tokenizer.bos_token = lm.tokenizer.bos_token, lm.tokenizer.convert_ids_to_tokens(token)
    try:
        with under() as session:
            outcome = task.run(session)
    finally:
        lm.tokenizer.bos_token = before
    marked = [[token, *ids] for ids in streams]
    windows = [ids[i : i + 8] for ids in marked for i in range(0, len(ids) - 7, 8)]
    want = [x for ids in windows for x in losses(lm, ids)]
    assert outcome.metrics["tokens"] == len(want)
    assert outcome.metrics["nll_nats_per_token"] == pytest.approx(sum(want) / len(want), rel=1e-5)


def test_a_stride_after_a_prompt(lm, sweep, run, corpus):
    """The first window alone has unscored tokens; each later one scores what the one before it had not."""
    ids = stream(lm, corpus)
    record = measured(sweep, run, corpus, window=12, windows="null", join="stream", prompt=6, stride=3, rest="keep")
    want = losses(lm, ids[:12])[-6:]
    last = 12
    for start in range(3, len(ids), 3):
        end = min(start + 12, len(ids))
        want += losses(lm, ids[start:end])[-(end - last) :] if end > last else []
        last = max(last, end)
    assert record.metrics["tokens"] == len(want) == len(ids) - 6
    assert record.metrics["nll_nats_per_token"] == pytest.approx(sum(want) / len(want), rel=1e-5)


LAYOUTS = {
    "c4/validation.jsonl.gz": {"text": "", "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org"},
    "pg19/test.parquet": {"short_book_title": "A Book", "publication_date": 1890, "url": "x", "text": ""},
    "arxiv-math/test.jsonl": {"text": "", "meta": "{}"},
    "bookcorpus/test.csv.gz": {"text": ""},
    "own.txt": None,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_corpora_in_the_columns_of_the_hub(lm, tmp_path, corpus, name):
    """People keep C4, PG-19 or Proof-Pile as they came; a conversion that each writes anew is where numbers differ."""
    row, texts = LAYOUTS[name], stream_texts(corpus)
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**row, "text": text} for text in texts] if row else []
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif ".csv" in path.suffixes:
        path.write_bytes(gzip.compress(pd.DataFrame(rows).to_csv(index=False).encode()))
    else:
        raw = "".join(json.dumps(r) + "\n" for r in rows).encode() if row else "\n\n".join(texts).encode()
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    file = tmp_path / "s.yaml"
    args = f"{{corpus: {name}, join: stream, window: 8, windows: null, rest: keep}}"
    file.write_text(f"model: pocket\nmethod: full\ntask: {{perplexity: {args}}}\n")
    assert main(["run", str(file), "--store", str(tmp_path / "store"), "--data", str(tmp_path / "data")]) == 0
    (record,) = Store(tmp_path / "store").records()
    ids = stream(lm, corpus)
    want = [x for i in range(0, len(ids), 8) for x in losses(lm, ids[i : i + 8])]
    assert record.metrics["nll_nats_per_token"] == pytest.approx(sum(want) / len(want), rel=1e-5)


@pytest.mark.parametrize(
    ("length", "args", "want"),
    [
        (10, (4, 1, None, "drop"), [(0, 4, 1), (4, 8, 1)]),
        (10, (4, 1, None, "keep"), [(0, 4, 1), (4, 8, 1), (8, 10, 1)]),
        (9, (4, 1, None, "keep"), [(0, 4, 1), (4, 8, 1)]),  # a window of one token has nothing to score
        (10, (4, 3, None, "drop"), [(0, 4, 3), (4, 8, 3)]),
        (10, (4, 1, 2, "keep"), [(0, 4, 1), (2, 6, 2), (4, 8, 2), (6, 10, 2)]),
        (9, (4, 1, 2, "keep"), [(0, 4, 1), (2, 6, 2), (4, 8, 2), (6, 9, 2)]),
        (9, (4, 1, 2, "drop"), [(0, 4, 1), (2, 6, 2), (4, 8, 2)]),
        (3, (4, 1, None, "drop"), []),
    ],
)
def test_windows_are_cut_as_said(length, args, want):
    """Off by one here, and a token is scored twice, or without context."""
    found = cut(list(range(length)), *args)
    assert [(w.tokens[0], w.tokens[-1] + 1, w.prompt) for w in found] == want


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("window: 8, prompt: 8", "leaves nothing of 8"),
        ("window: 8, prompt: 4, stride: 5", "at most 4 fits"),
        ("window: 8, field: tekst", "lacks the field 'tekst'; it has: body"),
    ],
)
def test_windows_that_leave_nothing_are_told_before_anything_runs(sweep, corpus, args, said):
    """A mistake in a file would be found on a compute node."""
    with pytest.raises(SweepError, match=said):
        sweep(f"method: full\ntask: {{perplexity: {{corpus: {corpus}, {args}}}}}\n")


def test_what_cannot_be_measured_is_said(sweep, run, corpus):
    """A traceback, or a number, where the question made no sense."""
    records, _ = run(sweep(f"method: full\ntask: {{perplexity: {{corpus: {corpus}, field: body, window: 4000}}}}\n"))
    (record,) = records.values()
    assert record.status == "error"
    assert "use a smaller window" in record.reason
