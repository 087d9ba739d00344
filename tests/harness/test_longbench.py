"""LongBench's metrics on cases computed by hand, its prompts and how they are cut."""

import json

import pytest

from lacuna.harness.generation import Question, Reply
from lacuna.harness.longbench.metrics import METRICS
from lacuna.harness.tasks.longbench import PROMPTS, LongBench


@pytest.mark.parametrize(
    ("metric", "answer", "truth", "want"),
    [
        ("f1", "The Cat, sat!", "a cat", 2 * 1 / (2 + 1)),  # cat sat / cat
        ("f1", "yes yes no", "yes no", 2 * 2 / 5),
        ("f1", "", "yes", 0),
        ("f1_zh", "北京大学。", "北京大学", 1),
        ("f1_zh", "我在北京", "北京", 2 * 1 / 4),  # 我 / 在 / 北京
        ("rouge_l", "the cat sat on the mat", "the cat lay on the mat", 2 * 4 / (5 + 5)),  # `the` counts once
        ("rouge_l", "", "anything", 0),
        ("rouge_l", ". . .", "anything", 0),
        ("rouge_l_zh", "我爱北京", "我爱北京", 1),
        ("rouge_l_zh", "我爱北京", "我爱上海", 2 / 3),  # 我 / 爱 of three words each
        ("count", "It is 5, not 7 or 5", "5", 2 / 3),
        ("count", "none", "5", 0),
        ("paragraph", "Paragraph 12 and 13", "Paragraph 12", 1 / 2),
        ("paragraph", "12", "Paragraph 2", 0),
        ("paragraph_zh", "段落5", "段落5", 1),
        ("paragraph_zh", "段落5或段落6, 段落5", "段落5", 2 / 3),
        ("code", "\n# a comment\n    return x\nmore", "    return x", 1),
        ("code", "```\nab\n", "abcd", 0.67),  # 2 * 2 / 6, in whole percent
        ("code", "x = 1", "x = 2", 0.8),
        ("code", "// only comments", "x", 0),
    ],
)
def test_metrics_by_hand(metric, answer, truth, want):
    """A score that differs from the published definition cannot stand beside published ones."""
    assert METRICS[metric](answer, truth, ()) == pytest.approx(want, abs=1e-6)


def test_classes_that_are_part_of_the_right_one_do_not_count():
    """The source takes items out of a list while it walks through it, and so misses some."""
    classes = ["Disease", "Disease and medicine", "medicine", "Date"]
    assert METRICS["classes"]("Disease and medicine", "Disease and medicine", classes) == 1
    assert METRICS["classes"]("Date or Disease and medicine", "Disease and medicine", classes) == 1 / 2
    assert METRICS["classes"]("Disease", "Disease and medicine", classes) == 0


def test_there_are_21_tasks_with_metrics():
    """A task without a prompt or metric fails when its turn comes, hours later."""
    about = json.loads(PROMPTS.read_text(encoding="utf-8"))
    assert len(about) == 21
    assert all("{context}" in a["prompt"] and a["metric"] in METRICS and 32 <= a["new"] <= 512 for a in about.values())


@pytest.fixture
def rows(tmp_path):
    """A file in LongBench's layout."""
    path = tmp_path / "rows.jsonl"
    made = [
        {
            "_id": f"r{i}",
            "context": f"First {i}. " + "It rained all day. " * n + f"Last {i}.",
            "input": f"Question {i}?",
        }
        | {"answers": ["rain", "it rained"], "length": words, "all_classes": None}
        for i, (n, words) in enumerate([(3, 100), (80, 5000), (4, 9000)])
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in made))
    return str(path)


def test_the_middle_is_cut_and_the_question_stays(under, rows):
    """Instructions stand at the beginning, the question at the end: cut there, and every method answers nonsense."""
    task = LongBench("hotpotqa", data=rows, length=192)
    with under() as session:
        asked = [task._question(session, n, row, 192) for n, row in enumerate(task._rows())]
        whole = [session.decode([*q.context, *q.turns[0]]) for q in asked]
    assert [q.facts["cut"] for q in asked] == [False, True, False]
    assert asked[1].length == 192
    assert whole[1].startswith("Answer the question based on the given passages.")
    assert whole[1].endswith("Question: Question 1?\nAnswer:")
    assert "Last 1." in whole[1]
    assert asked[0].length < 192
    about = json.loads(PROMPTS.read_text(encoding="utf-8"))["hotpotqa"]["prompt"]
    assert whole[0] == about.replace("{context}", task._rows()[0]["context"]).replace("{input}", "Question 0?")


def test_a_question_that_is_too_long_is_cut_like_the_rest(under, rows):
    """Examples of few-shot tasks stand in the question; a refusal would leave a hole in the table."""
    task = LongBench("trec", data=rows, length=64)
    row = {"context": "First words.", "input": "Question: " + "why and " * 60 + "Type:", "answers": ["x"]}
    with under() as session:
        question = task._question(session, 0, row, 64)
        text = session.decode([*question.context, *question.turns[0]])
    assert (question.length, question.facts["cut"]) == (64, True)
    assert text.startswith("Please determine the type")
    assert text.endswith("Type:")


def test_answers_are_judged_and_averaged(under, rows):
    """LongBench-E's bins must hold the rows of their lengths, and the best truth must count."""
    task = LongBench("hotpotqa", data=rows, length=192)
    row = task._rows()[0]
    asked = Question("q", (1,), ((1,),), {"row": row, "cut": False, "whole": 2})
    told = task._judge(asked, Reply(("it rained",), ([1],), 0.1))
    assert (told["score"], told["words"]) == (100, 100)
    trec = LongBench("trec", data=rows)
    named = {**row, "answers": ["Date"], "all_classes": ["Date", "Food"]}
    first = Question("q", (1,), ((1,),), {"row": named, "cut": False, "whole": 2})
    assert trec._judge(first, Reply(("\nDate\nFood",), ([1],), 0.1))["score"] == 100  # the first line alone
    with under() as session:
        outcome = task.run(session)
    scores = [s["score"] for s in outcome.samples]
    assert outcome.metrics["score"] == pytest.approx(sum(scores) / 3)
    assert [outcome.metrics[f"score_{b}"] for b in ("0_4k", "4_8k", "8k_up")] == scores
    assert [s["id"] for s in outcome.samples] == ["hotpotqa-r0", "hotpotqa-r1", "hotpotqa-r2"]
    assert all(1 <= s["completion_tokens"] <= 32 for s in outcome.samples)


def test_bins_of_longbench_e():
    """A row of 4000 words in the wrong bin, and the curve over length is another one."""
    words = {3999: 1.0, 4000: 2.0, 7999: 4.0, 8000: 8.0}
    samples = [
        {"score": s, "words": w, "truncated": False, "completion_tokens": 1, "answer_s": 0.1} for w, s in words.items()
    ]
    found = LongBench("lcc", data="x")._metrics([*samples, {**samples[0], "score": 0.0, "words": 0}])
    assert {k: v for k, v in found.items() if k.startswith("score_")} == {
        "score_0_4k": 0.5,
        "score_4_8k": 3,
        "score_8k_up": 8,
    }
    assert found["score"] == 3


def test_a_chat_format_goes_around_both_parts(under, rows, lm, monkeypatch):
    """A template applied to the context alone would end the user's turn before the question."""
    monkeypatch.setattr(lm.tokenizer, "chat_template", "<u>{{ messages[0]['content'] }}</u><a>", raising=False)
    task = LongBench("hotpotqa", data=rows, length=256, chat="model")
    with under() as session:
        asked = task._question(session, 0, task._rows()[0], 256)
        assert session.decode(asked.context).startswith("<u>Answer the question")
        assert session.decode(asked.turns[0]).endswith("Answer:</u><a>")
        plain = LongBench("trec", data=rows, length=256, chat="model")
        assert not session.decode(plain._question(session, 0, plain._rows()[0], 256).context).startswith("<u>")
    monkeypatch.setattr(lm.tokenizer, "chat_template", None, raising=False)
    with under() as session, pytest.raises(ValueError, match="no chat template"):
        task.run(session)


def test_minilongbench_is_read_by_task(shared, under):
    """237 prompts of 21 tasks are in one file; a task that found none would be a hole in the table."""
    path = str(shared / "minilongbench" / "minilongbench.jsonl.gz")
    about = json.loads(PROMPTS.read_text(encoding="utf-8"))
    counts = {name: len(LongBench(name, data=path)._rows()) for name in about}
    assert sum(counts.values()) == 237
    assert min(counts.values()) >= 4
    for name in about:  # every truth is a perfect answer to itself, by its task's metric
        task = LongBench(name, data=path)
        row = task._rows()[0]
        gold = row["gold"]["answers"] if isinstance(row["gold"], dict) else row["gold"]
        asked = Question("q", (1,), ((1,),), {"row": row, "cut": False, "whole": 2})
        best = max(task._judge(asked, Reply((truth,), ([1],), 0.1))["score"] for truth in gold)
        assert best == pytest.approx(100, abs=0.01), name
    with under() as session:
        outcome = LongBench("trec", data=path, limit=2, length=512).run(session)
    assert outcome.metrics["samples"] == 2
    assert outcome.metrics["truncated"] == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"prompt": "x", "task": "trec", "gold": []}\n', "no row of the task hotpotqa"),
        ('{"context": "x", "input": "y"}\n', "lacks the field 'answers'"),
    ],
)
def test_wrong_rows_are_said(under, tmp_path, lines, said):
    """A key error does not say which file has which columns."""
    (tmp_path / "w.jsonl").write_text(lines)
    with under() as session, pytest.raises(ValueError, match=said):
        LongBench("hotpotqa", data=str(tmp_path / "w.jsonl")).run(session)
