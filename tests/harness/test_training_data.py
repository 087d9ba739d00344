"""Text becomes rows to train on: shards, plants and landmarks against definitions written down here."""

import json

import numpy as np
import pytest

from lacuna.harness.training.batches import Batches
from lacuna.harness.training.corpus import documents
from lacuna.harness.training.landmarks import Batch, Landmarks
from lacuna.harness.training.plants import Plants
from lacuna.harness.training.schedule import Part, Schedule
from lacuna.harness.training.shards import Shards, write_shards
from lacuna.harness.training.vocabulary import learn

TEXTS = [text[:30000] for text in documents(["calibration"])]


@pytest.fixture(scope="module")
def tokenizer():
    return learn(TEXTS, 400)


@pytest.fixture
def shards(tokenizer, tmp_path):
    write_shards(TEXTS, tokenizer, tmp_path, shard_tokens=20000)
    return Shards.open(tmp_path)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_text_comes_back(tokenizer):
    """A byte without a token would be lost in silence, and a number in one token cannot be copied digit by digit."""
    text = "é漢🙂\x00\ttabs 1234567 \r\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in ids if tokenizer.decode([i]).strip().isdigit()] == list("1234567")


def test_vocabulary_is_the_same_again(tokenizer):
    """Two runs of one cell would train different models."""
    assert learn(TEXTS, 400).to_str() == tokenizer.to_str()


@pytest.mark.parametrize(("size", "words"), [(100, "256 bytes"), (10**6, "lower `vocabulary`")])
def test_impossible_vocabularies_are_refused(size, words):
    """A model would have tokens that no text can give, or texts that no tokens can."""
    with pytest.raises(ValueError, match=words):
        learn(["a short text"], size)


def test_shards_hold_the_documents(tokenizer, shards):
    """A document cut, joined to another or out of order would be learned as it never was written."""
    assert len(shards.tokens) > 1
    assert len(shards.starts) == len(TEXTS) + 1
    for text, start, end in zip(TEXTS, shards.starts[:-1], shards.starts[1:], strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert shards.take(start, end - start).tolist() == [*ids, 0]


def test_cut_off_preparation_goes_on(tokenizer, tmp_path, monkeypatch):
    """Hours of preparation would begin anew, or end otherwise than in one go."""
    write_shards(TEXTS, tokenizer, tmp_path / "once", shard_tokens=20000)
    folder = tmp_path / "twice"
    monkeypatch.setattr("lacuna.harness.training.shards.CHARACTERS_AT_ONCE", 1)  # each text by itself

    def dying():
        for number, text in enumerate(TEXTS):
            if number == len(TEXTS) - 1:
                raise KeyboardInterrupt
            yield text

    with pytest.raises(KeyboardInterrupt):
        write_shards(dying(), tokenizer, folder, shard_tokens=20000)
    first = folder / "00000.tokens"
    before = first.stat().st_mtime_ns
    with pytest.raises(ValueError, match="holds no finished shards"):
        Shards.open(folder)
    write_shards(TEXTS, tokenizer, folder, shard_tokens=20000)
    assert first.stat().st_mtime_ns == before
    assert files(folder) == files(tmp_path / "once")


def test_damage_is_told(shards, tmp_path):
    """A flipped bit would be trained on."""
    path = tmp_path / "00001.tokens"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"00001\.tokens is damaged"):
        Shards.open(tmp_path)


def test_another_vocabulary_is_refused(shards, tmp_path):
    """Token numbers of one vocabulary mean other words in another."""
    other = learn(TEXTS, 300)
    with pytest.raises(ValueError, match="another vocabulary"):
        Shards.open(tmp_path, other)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="another tokenizer"):
        write_shards(TEXTS, other, tmp_path, shard_tokens=20000)
    assert files(tmp_path) == before


def test_a_corpus_that_ends_early_is_told(tmp_path):
    """Half a corpus would be trained on as if it were whole."""
    import gzip

    whole = gzip.compress(json.dumps({"text": "word " * 5000}).encode())
    (tmp_path / "half.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read to its end"):
        list(documents([str(tmp_path / "half.jsonl.gz")]))


def part(rows=6, length=512, planted=1.0, step=0, number=0):
    return Part(step, number, rows, length, planted, last=True)


def test_rows_lie_in_one_document(shards):
    """A model would learn that one book goes on in another."""
    whole = np.concatenate(shards.tokens)
    made = Batches(shards, 0, Plants.of(shards.tokenizer, (1, 0, 0, 0, 0, 0), 4.0)).make(part(40, 200, planted=0.0))
    for ids, targets, weights in zip(made.ids, made.targets, made.weights, strict=True):
        row = [*ids, targets[-1]]
        places = np.flatnonzero((np.lib.stride_tricks.sliding_window_view(whole, 201) == row).all(1))
        assert places.size
        inside = [np.searchsorted(shards.starts, p, "right") == np.searchsorted(shards.starts, p + 200, "right")
                  for p in places]  # fmt: skip
        assert any(inside)
        assert (weights == 1).all()
        assert (targets[:-1] == ids[1:]).all()


def test_short_documents_are_filled_up_without_weight(tokenizer, tmp_path):
    """A model would learn to say the end of a text for ever."""
    write_shards(["ab"], tokenizer, tmp_path)
    made = Batches(Shards.open(tmp_path), 0, Plants.of(tokenizer, (1, 0, 0, 0, 0, 0), 4.0)).make(part(2, 16, planted=0))
    length = len(tokenizer.encode("ab").ids)
    assert made.weights.sum(1).tolist() == [length, length]  # the last target is the document's end


def plain(rows=3, length=12):
    ids = np.arange(rows * length).reshape(rows, length)
    return Batch(ids, ids + 1, np.ones((rows, length), np.float32))


def test_landmarks_close_blocks():
    """A token must be followed by the next token, and a landmark by nothing: that is the paper's rule for the loss."""
    made = Landmarks(99, 98, 4).insert(plain(1), np.random.default_rng(0))
    assert made.ids[0].tolist() == [0, 1, 2, 3, 99, 4, 5, 6, 7, 99, 8, 9, 10, 11, 99]
    assert made.targets[0][[0, 3, 5, 13]].tolist() == [1, 4, 5, 12]
    assert made.weights[0].tolist() == [1, 1, 1, 1, 0] * 3
    assert made.landmarks[0].tolist() == [False, False, False, False, True] * 3


def test_random_landmarks_lose_no_token():
    """Two landmarks side by side, or one at the start, are blocks without rows: their share of attention is lost."""
    made = Landmarks(99, 98, 4, "random", jump=7, controlled=0.5).insert(plain(50), np.random.default_rng(1))
    assert (made.ids[:, 0] == 98).all()
    marks = made.landmarks[:, 1:]
    assert (marks.sum(1) == 3).all()
    assert not marks[:, 0].any()
    assert not (marks[:, 1:] & marks[:, :-1]).any()
    assert (made.ids[:, 1:][~marks].reshape(50, 12) == plain(50).ids).all()
    assert (made.controlled <= made.landmarks).all()
    assert 0 < made.controlled.sum() < made.landmarks.sum()
    steps = np.diff(made.positions[:, 1:], axis=1)
    assert (steps[~marks[:, :-1]] == 1).all()
    assert set(steps[marks[:, :-1]]) == set(range(1, 9))


def test_block_that_does_not_divide_is_refused():
    """The last tokens of each row would belong to a block that never closes, unseen in training."""
    with pytest.raises(ValueError, match="every 5 tokens does not divide a length of 12: take 10"):
        Landmarks(99, 98, 5).check(12)


def test_parts_are_dealt_out_to_ranks():
    """Ranks that share or skip a part would train on other text than one rank does."""
    schedule = Schedule.of([64, 128], [0.5, 0.5], [0, 0], 8192, 1024, 256, (0.1, 0.5, 0.0))
    alone = list(schedule.parts(3, 0, 1))
    dealt = [list(schedule.parts(3, rank, 2)) for rank in (0, 1)]
    assert {(p.step, p.number) for p in alone} == {(p.step, p.number) for d in dealt for p in d}
    assert all(sum(p.last for p in d) == schedule.steps - 3 for d in dealt)
    with pytest.raises(ValueError, match=r"4 parts .* 3 ranks cannot share evenly"):
        next(schedule.parts(0, 0, 3))


def test_rates_rise_and_fall():
    """A rate that never rises or never falls ends in a loss that is no number, or higher than it could be."""
    schedule = Schedule.of([64], [1.0], [0], 102400, 1024, 1024, (0.1, 0.5, 0.1))
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:50] == [1.0] * 41
    assert factors[75] == pytest.approx(0.1 + 0.9 * 0.5)
    assert factors[99] == pytest.approx(0.1 + 0.9 * 0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shares": [0.5, 0.4]}, "shares sum to 0.9"),
        ({"planted": [0.0]}, "expected one of each for a stage"),
        ({"lengths": [64, 100]}, "a length of 100 must divide part_tokens"),
    ],
)
def test_wrong_schedules_are_refused(change, words):
    """A run would silently be another one than was asked for."""
    given = {"lengths": [64, 128], "shares": [0.5, 0.5], "planted": [0, 0], **change}
    with pytest.raises(ValueError, match=words):
        Schedule.of(**given, tokens=8192, step_tokens=1024, part_tokens=256, rates=(0.1, 0.5, 0.0))
