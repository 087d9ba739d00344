"""The same parity on real sets, in the shots of the papers where the pocket model has room for them."""

import pytest
from lm_eval_reference import same, theirs

from lacuna.harness.layouts import in_hub_columns
from lacuna.harness.rows import read_rows
from lacuna.harness.tasks.lm_eval import LmEval

SETS = {
    "arc_challenge": ("arc/arc_challenge.jsonl.gz", "arc/arc_challenge.jsonl.gz", 5),
    "arc_easy": ("arc/arc_easy.jsonl.gz", "arc/arc_easy.jsonl.gz", 5),
    "boolq": ("boolq/boolq.jsonl.gz", None, 0),
    "gsm8k": ("gsm8k/test.jsonl.gz", "gsm8k/train.jsonl.gz", 3),
    "hellaswag": ("hellaswag/hellaswag_val.jsonl.gz", "hellaswag/hellaswag_val.jsonl.gz", 2),
    "lambada_openai": ("lambada/lambada_openai.jsonl.gz", None, 0),
    "mmlu_anatomy": ("mmlu/mmlu_test.jsonl.gz", "mmlu/mmlu_dev.jsonl.gz", 5),
    "openbookqa": ("openbookqa/openbook_qa.jsonl.gz", None, 0),
    "piqa": ("piqa/piqa.jsonl.gz", None, 0),
    "truthfulqa_mc2": ("truthfulqa/TruthfulQA.csv.gz", None, 0),
    "winogrande": ("winogrande/winogrande.jsonl.gz", "winogrande/winogrande.jsonl.gz", 5),
}


def task_of(shared, name, limit):
    """lm-eval's own task on the file."""
    data, shots_data, shots = SETS[name]
    more = {"shots_data": str(shared / shots_data)} if shots_data else {}
    return LmEval(name, data=str(shared / data), shots=shots, limit=limit, length=2048, **more)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SETS)
def test_real_sets_give_lm_eval_s_own_results(lm, under, shared, name):
    """A layout read wrongly gives plausible scores of other questions."""
    documents = {"gsm8k": 1, "truthfulqa_mc2": 3}.get(name, 4)  # long answers, and many choices of each
    task = task_of(shared, name, documents)
    with under() as session:
        ours = task.run(session)
    same(ours, theirs(lm, task, 2048), counted=name != "truthfulqa_mc2")
    assert ours.metrics["documents"] == documents


@pytest.mark.parametrize(
    ("name", "column", "want"),
    [
        ("winogrande", "sentence", "Sarah was a much better surgeon than Maria so _ always got the easier cases."),
        ("hellaswag", "ctx_a", "A man is sitting on a roof. he"),
        ("arc_easy", "answerKey", "A"),
        ("piqa", "goal", None),
        ("boolq", "question", None),
        ("truthfulqa_mc2", "question", "What happens to you if you eat watermelon seeds?"),
    ],
)
def test_files_become_the_hub_s_rows(shared, name, column, want):
    """The first question of each set as the Hub has it; a shifted answer key would score at chance."""
    path = str(shared / SETS[name][0])
    row = in_hub_columns(name, path, read_rows(path)[:50], "")[0]
    assert row[column] == want if want else row[column].strip() == row[column] != ""
    assert not any(str(row[column]).startswith(p) for p in ("Question:", "Passage:"))


def test_mmlu_is_read_by_subject(shared):
    """All subjects in one file must not be asked as one subject."""
    path = str(shared / "mmlu/mmlu_test.jsonl.gz")
    rows = in_hub_columns("mmlu_anatomy", path, read_rows(path), "anatomy")
    assert len(rows) == 135
    with pytest.raises(ValueError, match="no row whose subject is 'alchemy'"):
        in_hub_columns("mmlu_alchemy", path, read_rows(path), "alchemy")
