"""What lm-eval's own Hugging Face model says, and when two results are the same."""

import pytest
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from lacuna.harness.lm_eval.tasks import Wanted, build


def theirs(lm, task, length):
    """What lm-eval's own model says of the same tasks."""
    own = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=2, max_length=length, device="cpu")
    found = evaluate(
        own,
        build(Wanted(task.file or task.task, task.data, task.shots_data, task.shots, task.limit)),
        limit=task.limit,
        bootstrap_iters=0,
        apply_chat_template=task.chat != "none",
        fewshot_as_multiturn=task.chat == "turns",
    )
    return {m: v for r in found["results"].values() for m, v in r.items() if isinstance(v, float)}, found["samples"]


def same(ours, found, *, counted=True):
    """Counted metrics to the last digit, what is made of logarithms to rounding."""
    results, _ = found
    for metric, value in results.items():
        name, _, rule = metric.partition(",")
        mine = ours.metrics[name if rule == "none" else f"{name}_{rule}".replace("-", "_")]
        exact = counted and name.split("_")[0] in ("acc", "exact")
        assert mine == value if exact else mine == pytest.approx(value, rel=1e-5), metric
