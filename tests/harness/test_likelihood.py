"""Log-probabilities of continuations, held against transformers' own forward pass."""

import pytest
import torch

from lacuna.harness import likelihood
from lacuna.harness.likelihood import Pair, score_pairs

CONTEXTS = ("The king said to the", "In the middle of the night a man came to the door and", "A")
ENDS = (" queen", " old man of the sea", " door")


def pairs(lm):
    """Every end after every context: contexts that come back, ends of different lengths."""
    return [
        Pair(f"{i}-{j}", tuple(lm.encode(c)), tuple(lm.encode(e)))
        for i, c in enumerate(CONTEXTS)
        for j, e in enumerate(ENDS)
    ]


@torch.no_grad()
def test_dense_scores_are_those_of_transformers(lm, under):
    """Every log-likelihood task rests on these numbers."""
    with under() as session:
        samples = score_pairs(session, pairs(lm))
    for pair, sample in zip(pairs(lm), samples, strict=True):
        ids = torch.tensor([[*pair.context, *pair.continuation]])
        logits = lm.model(ids, use_cache=False).logits[0, len(pair.context) - 1 : -1].float()
        target = torch.tensor(pair.continuation)
        want = torch.log_softmax(logits, -1).gather(1, target[:, None]).sum()
        assert sample["logprob_nats"] == pytest.approx(float(want), abs=1e-4)
        assert sample["greedy"] == bool((logits.argmax(-1) == target).all())
        assert (sample["prompt_tokens"], sample["completion_tokens"]) == (len(pair.context), len(pair.continuation))


@pytest.mark.parametrize(
    "method", ["full", {"topk": {"rows": 3}}, {"h2o": {"rows": 6}}, {"snapkv": {"rows": 4, "window": 2}}]
)
def test_scores_do_not_depend_on_the_batch(lm, under, monkeypatch, method):
    """Loki's published scores depend on the longest text of a batch; ours must not."""
    wanted = [p for p in pairs(lm) if len(p.context) > 4]
    found, counted = [], []
    for at_once in (1, 10_000):
        monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", at_once)
        with under(method) as session:
            found.append([s["logprob_nats"] for s in score_pairs(session, wanted)])
            counted.append(session.sums()[:, 1])
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    torch.testing.assert_close(*counted)


def test_a_context_without_a_token_is_refused(lm, under):
    """The first token has no probability of its own; a made-up one would be scored."""
    with under() as session, pytest.raises(ValueError, match="no token before"):
        score_pairs(session, [Pair("x", (), tuple(lm.encode(" a")))])
