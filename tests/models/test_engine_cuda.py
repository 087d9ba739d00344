"""On a GPU a step is replayed from one CUDA graph; the ordinary path there says what must come out."""

import pytest
import torch
from conftest_models import DIM, make_method, make_model, tokens
from test_engine import CASES, ordinary, session_of, texts

from lacuna.harness.engine import WARM_UP, Sampled, engine, greedy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
STEPS, WIDE = 12, 64


def made(name, args):
    """A method; the state of a ratchet counts as 2 D + 1 rows of its budget."""
    return make_method(name, args | {"rows": args["rows"] + 2 * (WIDE - DIM)} if name == "ratchetkv" else args)


@pytest.mark.parametrize(
    ("pick", "layers"), [(greedy, "own"), (greedy, "fused"), (Sampled(1.3), "own")], ids=["greedy", "fused", "sampled"]
)
@pytest.mark.parametrize(("name", "args"), CASES)
def test_a_replayed_step_is_the_step_itself(name, args, pick, layers, basis):
    """A graph would read where the step before did not write, or a value that was the host's when it was captured."""
    model, method, files = make_model(head_dim=WIDE).cuda(), made(name, args), basis(dim=WIDE)
    with (
        session_of(model, method, files) as session,
        engine(session, session.prefill(texts()), STEPS + 1, pick, layers) as steps,
    ):
        steps.capture()
        assert pick is not greedy or steps.agrees()
        while steps.made < STEPS:
            steps.step()
        got, told = steps.tokens_BN.cpu(), session.binding.ledger.sums()
        assert len(set(steps.tokens_BN[:, WARM_UP:].flatten().tolist())) > 1
    if pick is greedy:  # the noise of a replay is drawn from where the graph's generator stands
        with session_of(model, method, files) as session:
            want, _, counted = ordinary(session, greedy, STEPS)
        assert torch.equal(got, want.cpu())
        torch.testing.assert_close(told, counted, atol=1e-6, rtol=1e-9)


def test_a_step_that_asks_the_host_cannot_be_captured():
    """A method that says it can be captured, and cannot, would end in a graph that replays old numbers."""

    def asks(logits_BV):
        return torch.full_like(logits_BV[:, 0], int(logits_BV.argmax()) % 7, dtype=torch.long)

    model = make_model(head_dim=WIDE).cuda()
    with session_of(model, make_method("full", {}), {}) as session:
        state = session.prefill([tokens(1, 30)[0].tolist()])
        with engine(session, state, 8, asks) as steps, pytest.raises(RuntimeError):
            steps.capture()
