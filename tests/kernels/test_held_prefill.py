"""Attention to keys that leave one after the other, against a loop over rows."""

import pytest
import torch

from lacuna.kernels.op import load_op
from lacuna.kernels.verify import verify

OP = load_op("held_prefill")
TESTED = [case for case in OP.cases if case.purpose == "test"]


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_a_row_attends_what_has_come_and_not_left(twin, device):
    """Broken: a row attends a key that left before it, that comes after it, or that is a hole."""
    case = TESTED[0]
    inputs = OP.make(case, device, 5)
    found = getattr(OP, twin)(**inputs)
    q, k, v, leave = (inputs[name].cpu() for name in ("q_BHTD", "k_BGSD", "v_BGSD", "leave_BGS"))
    lengths = set()
    for t in (0, 1, 40, 76):
        held = [s for s in range(77) if s <= t and leave[0, 1, s] > t]
        lengths.add(len(held))
        score = q[0, 1, t].double() @ k[0, 1, held].double().T / 8
        want = score.softmax(-1) @ v[0, 1, held].double() if held else torch.zeros(64, dtype=torch.float64)
        torch.testing.assert_close(found.out_BHTD[0, 1, t].double().cpu(), want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.log_BHT[0, 1, t].double().cpu(), score.logsumexp(-1), atol=1e-5, rtol=1e-5)
    assert 0 in lengths
    assert max(lengths) == 20  # as many as are kept


@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
def test_twins_agree(case, device):
    """Broken: the fused twin errs more than twice as much as the eager one, or leaves output unwritten."""
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict
