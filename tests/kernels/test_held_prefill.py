"""Attention to keys that leave one after the other, against a loop over rows."""

import pytest
import torch

from lacuna.kernels.held_prefill.fused import first_tiles
from lacuna.kernels.many_rows import RowsCase, Tiles
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


def test_windows_begin_at_their_first_key(device):
    """Broken: a tile of rows reads keys that all have left, or begins after one that is still held."""
    leave = torch.arange(2500, dtype=torch.int32, device=device) - 1500 + 20  # 1500 before, then a window of 20
    leave = leave.clamp(min=0)
    leave[:4] = 1000  # and sinks, in the tile that is read in any case
    for later_sink in (0, 1000):
        leave[40] = later_sink
        found = first_tiles(leave.view(1, 1, -1), 1000, Tiles(32, 16, 4, 2))
        want = [next(s for s in range(16, 2500) if leave[s] > begin) // 16 for begin in range(0, 1000, 32)]
        assert found[0, 0].tolist() == want
        assert (want[-1] == 2) == (later_sink > 0)
    none = first_tiles(torch.zeros(1, 1, 200, dtype=torch.int32, device=device), 150, Tiles(32, 16, 4, 2))
    assert none[0, 0].tolist() == [13] * 5


@pytest.mark.parametrize("sinks", [0, 4, 70])
def test_a_window_behind_sinks_is_attended_whole(sinks, device):
    """Broken: what is skipped between the sinks and a window is still held, or a tile is read twice."""
    inputs = OP.make(RowsCase("window", 1, 2, 1, 500, head_dim=16, queries=130, dtype="float32"), device, 2)
    leave = (torch.arange(500) - 370 + 50).clamp(0, 130)  # a window of 50
    leave[:sinks] = 130
    inputs["leave_BGS"] = leave.int().view(1, 1, -1).to(device)
    found = OP.fused(**inputs)
    q, k, v = (inputs[name].double().cpu() for name in ("q_BHTD", "k_BGSD", "v_BGSD"))
    for t in (0, 63, 64, 129):
        held = [*range(sinks), *range(max(sinks, 370 + t - 49), 370 + t + 1)]
        score = q[0, 1, t] @ k[0, 0, held].T * inputs["scale"]
        torch.testing.assert_close(found.out_BHTD[0, 1, t].double().cpu(), score.softmax(-1) @ v[0, 0, held],
                                   atol=1e-5, rtol=1e-5)  # fmt: skip
        torch.testing.assert_close(found.log_BHT[0, 1, t].double().cpu(), score.logsumexp(-1), atol=1e-5, rtol=1e-5)
