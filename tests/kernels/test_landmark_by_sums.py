"""The gradient of landmark attention by what its first kernel notes: any block, cut anyhow, against the eager twin.

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, D head dim.
"""

import pytest
import torch

from lacuna.kernels.landmark_attention.fused import landmark_forward
from lacuna.kernels.landmark_gradient import by_sums, fused
from lacuna.kernels.many_rows import Tiles
from lacuna.kernels.op import load_op
from lacuna.kernels.verify import poisoned_memory

EAGER = load_op("landmark_gradient").eager
CUTS = {
    "default": None,
    "blocks_of_a_tile": (Tiles(16, 32, 4, 2), Tiles(16, 64, 4, 2)),
    "parts_of_a_block": (Tiles(32, 64, 4, 2), Tiles(16, 32, 4, 2)),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("block", "rows", "new", "heads", "groups"),
    [(16, 80, 80, 2, 2), (17, 61, 37, 4, 2), (50, 130, 90, 2, 1), (100, 230, 100, 2, 1), (128, 300, 300, 1, 1)],
)
def test_the_gradient_is_the_eager_one(block, rows, new, heads, groups, cut, device, monkeypatch):
    """Broken: what is noted of a row and block is read for another, or a landmark's key gets another gradient."""
    monkeypatch.setattr(by_sums, "MOST_BYTES", 10 * new * -(-rows // block) * heads // groups)  # one KV head at a time
    torch.manual_seed(block)
    q, grad = (torch.randn(2, heads, new, 16, device=device) for _ in range(2))
    k, v = (torch.randn(2, groups, rows, 16, device=device) for _ in range(2))
    with poisoned_memory():
        out, lse = landmark_forward(q, k, v, block, 0.25)
        found = by_sums.landmark_backward(q, k, v, out, lse, grad, block, 0.25, CUTS[cut])
    expected = EAGER(*(part.double() for part in (q, k, v, grad)), block, 0.25)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("shape", "block", "noted"), [
    ((2, 32, 2048, 128), 128, True), ((2, 32, 2047, 64), 128, False), ((2, 32, 4096, 64), 64, True),
    ((128, 6, 504, 64), 63, True), ((2, 32, 2048, 64), 64, False), ((2, 32, 8191, 64), 64, False),
    ((2, 32, 8192, 96), 64, False), ((2, 32, 8192, 64), 8, False), ((2, 32, 8192, 256), 128, False),
    ((1, 1, 2**18, 64), 64, False),
])  # fmt: skip
def test_shapes_that_were_faster_by_notes_take_them(shape, block, noted):
    """Broken: a shape goes the way that was slower when both were timed, or the notes of one head do not fit."""
    parts = torch.empty(shape, device="meta"), torch.empty(shape, device="meta")
    assert by_sums.suits(*parts, block) is noted


@pytest.mark.parametrize("packed", [False, True])
def test_packed_texts_take_no_notes(packed, device, monkeypatch):
    """Broken: a text that is packed goes through notes, which know no documents; or no text does."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(1, 1, 40, 16, device=device) for _ in range(4))
    starts = torch.zeros(1, 40, dtype=torch.int32, device=device) if packed else None
    called = []
    monkeypatch.setattr(by_sums, "suits", lambda *_: True)
    monkeypatch.setattr(by_sums, "landmark_backward", lambda *given: called.append(given) or given[:3])
    out, lse = landmark_forward(q, k, v, 16, 0.1, starts)
    fused.landmark_backward(q, k, v, out, lse, grad, 16, 0.1, starts)
    assert len(called) == (not packed)


@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 32, 16384, 64), 32), ((1, 64, 65536, 128), 8), ((2, 4, 100, 16), 2)]
)
def test_notes_take_bounded_memory(shape, groups):
    """Broken: long texts keep something for each row and block of all heads at once, and no longer fit."""
    q, k = torch.empty(shape, device="meta"), torch.empty(shape[0], groups, *shape[2:], device="meta")
    notes = by_sums.Notes.room_for(q, k, 64)
    held = sum(part.nbytes for part in vars(notes).values())
    one = held // len(notes.bias_PXJT)
    assert 1 <= len(notes.bias_PXJT) <= shape[0] * groups
    assert held <= max(one, by_sums.MOST_BYTES)


def test_a_landmark_far_above_its_block_spoils_nothing(device):
    """Broken: weights of a landmark's row, which are of no use and may be infinite, reach other rows."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(1, 1, 64, 16, device=device) for _ in range(4))
    q[..., 0] = 30.0
    k[:, :, 15::16, 0] = 30.0  # scores of landmarks: 900
    out, lse = landmark_forward(q, k, v, 16, 1.0)
    found = by_sums.landmark_backward(q, k, v, out, lse, grad, 16, 1.0)
    expected = EAGER(*(part.double() for part in (q, k, v, grad)), 16, 1.0)
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all()
        assert float((one.double() - other).norm() / other.norm()) < 1e-3
