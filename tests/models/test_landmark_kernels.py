"""Method `landmark` through the fused kernels: in Triton's interpreter, and unchanged on a GPU."""

import pytest
import torch
from conftest_models import make_method, make_model, run_rows, tokens

from lacuna.kernels.landmark_attention.fused import landmark_forward
from lacuna.kernels.op import watched
from lacuna.models import landmark_places
from lacuna.models.ledger import summary

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    ({"rows": 16, "chunk": 8}, 2, 0),
    ({"rows": 12, "chunk": 4, "choose": "row"}, 2, 5),
    ({"rows": 12, "chunk": 4, "choose": "head", "blocks": 3, "offload": "host"}, 1, 5),
]


def through_retrieval(op, arguments, twin):
    """The choice has tests of its own, and takes long in the interpreter."""
    return (op.fused if op.name == "landmark_retrieve" else twin)(*arguments)


@pytest.mark.parametrize(("args", "groups", "padding"), CASES)
def test_fused_twins_give_what_the_eager_ones_give(args, groups, padding, monkeypatch):
    """Broken: text scored on a GPU reads other blocks than on a CPU, or merges them by other weights."""
    model, ids = make_model(num_key_value_heads=groups, num_hidden_layers=1), tokens(2, 30)
    mask = (torch.arange(30) >= torch.tensor([0, padding])[:, None]).long()
    method = make_method("landmark", args)
    want, counted = run_rows(model, method, ids, {}, 13, True, mask=mask)
    calls = []

    def forward(*arguments):
        calls.append(arguments[0].shape[2])
        return landmark_forward(*arguments)

    monkeypatch.setattr(landmark_places, "landmark_forward", forward)
    with watched(through_retrieval):
        got, ledger = run_rows(model.to(DEVICE), method, ids.to(DEVICE), {}, 13, True, mask=mask.to(DEVICE))
    torch.testing.assert_close(got.cpu(), want, atol=2e-3, rtol=1e-3)
    ours, theirs = (summary([book.sums()])["decode"] for book in (ledger, counted))
    assert ours == pytest.approx(theirs)
    assert max(calls) >= 17  # all rows at once


@pytest.mark.parametrize("block", [3, 126, 127])
def test_long_blocks_are_read_too(block):
    """Broken: a model whose blocks the fused kernel does not take cannot be read on a GPU."""
    said = {"token": 0, "control": 0, "block": block, "length": 512, "gated": False}
    model, ids = make_model(lacuna_landmark=said, head_dim=64), tokens(1, 2 * block + 9)
    method = make_method("landmark", {"rows": 2 * block, "chunk": block})
    want, _ = run_rows(model, method, ids, {}, block, True)
    got, _ = run_rows(model.to(DEVICE), method, ids.to(DEVICE), {}, block, False)
    torch.testing.assert_close(got.cpu(), want, atol=2e-3, rtol=1e-3)
