"""On a GPU a step is replayed from one CUDA graph; the ordinary path there says what must come out."""

import pytest
import torch
from conftest_models import DIM, make_method, make_model, tokens
from test_engine import CASES, ordinary, session_of, texts

from lacuna.harness.engine import WARM_UP, Sampled, engine, greedy
from lacuna.kernels.overlap import fused as overlapping

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
STEPS, WIDE = 12, 64
LARGER = {"head_dim": WIDE, "hidden_size": 512, "intermediate_size": 1400, "num_hidden_layers": 4}


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


def seventh(logits_BV):
    """A token that does not hang on how logits are rounded."""
    return torch.full_like(logits_BV[:, 0], 7, dtype=torch.long)


def logits_after(model, layers, steps, pick, name, args, files):
    """Of replayed steps, and the tokens."""
    with (
        session_of(model, make_method(name, args), files) as session,
        engine(session, session.prefill(texts()), steps + 1, pick, layers) as replayed,
    ):
        replayed.capture()
        while replayed.made < steps:
            replayed.step()
        return replayed.logits.clone(), replayed.tokens_BN.clone()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_fused_layers_err_no_more_than_the_models_own_in_half_precision(family, dtype):
    """Products of few tokens, which are another kernel in half precision, would be others."""
    model = make_model(family, **LARGER).to(dtype).cuda()
    found = {
        layers: logits_after(model, layers, STEPS, seventh, "full", {}, {})[0].float() for layers in ("own", "fused")
    }
    want = logits_after(model.float(), "own", STEPS, seventh, "full", {}, {})[0]
    errors = {layers: float((logits - want).norm() / want.norm()) for layers, logits in found.items()}
    assert 0 < errors["fused"] <= 1.5 * errors["own"], errors


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < overlapping.HOPPER,
    reason="no launch begins early on a GPU before Hopper",
)
@pytest.mark.parametrize(
    ("name", "args"), [("full", {}), ("loki", {"keep": 0.25, "d": 0.5}), ("snapkv", {"rows": 9, "window": 4})]
)
def test_launches_that_begin_early_change_no_bit(name, args, basis, monkeypatch):
    """What a launch before has not written yet would be read, or what it reads be overwritten: not in every step."""
    found = []
    for least in (overlapping.HOPPER, (99, 0)):
        monkeypatch.setattr(overlapping, "HOPPER", least)
        model = make_model(**LARGER).bfloat16().cuda()
        found.append(logits_after(model, "fused", 300, greedy, name, args, basis(dim=WIDE, layers=4)))
    assert all(torch.equal(early, late) for early, late in zip(*found, strict=True))


def test_a_step_that_asks_the_host_cannot_be_captured():
    """A method that says it can be captured, and cannot, would end in a graph that replays old numbers."""

    def asks(logits_BV):
        return torch.full_like(logits_BV[:, 0], int(logits_BV.argmax()) % 7, dtype=torch.long)

    model = make_model(head_dim=WIDE).cuda()
    with session_of(model, make_method("full", {}), {}) as session:
        state = session.prefill([tokens(1, 30)[0].tolist()])
        with engine(session, state, 8, asks) as steps, pytest.raises(RuntimeError):
            steps.capture()
