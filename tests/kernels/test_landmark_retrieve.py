"""Attention to retrieved blocks against landmark attention itself, and the twins against each other.

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, N blocks, C rows of a block, K blocks
retrieved.
"""

import pytest
import torch

from lacuna.kernels.landmark_attention.eager import landmark_forward
from lacuna.kernels.op import load_op
from lacuna.kernels.verify import verify

OP = load_op("landmark_retrieve")


def test_all_blocks_and_the_own_one_are_the_whole_text():
    """Broken: retrieved blocks and local rows, merged by their sums of weights, are not the grouped softmax of both."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, rows, 8, dtype=torch.float64) for heads, rows in ((4, 3), (2, 23), (2, 23)))
    whole = landmark_forward(q, k, v, 5, 0.4)[0]  # four closed blocks; the queries are in the open fifth
    local, local_lse = landmark_forward(q, k[:, :, 20:], v[:, :, 20:], 5, 0.4)
    blocks = [part[:, :, :20].unflatten(2, (4, 5)) for part in (k, v)]
    rows = [part[:, :, :, :4].flatten(2, 3) for part in blocks]
    index = torch.tensor([2, 0, 3, 1], dtype=torch.int32).expand(2, 1, 1, 4)
    begin = torch.zeros(2, dtype=torch.int32)
    slots = q[:, :, :, None].expand(-1, -1, -1, 4, -1)
    far, far_lse = OP.eager(slots, *rows, blocks[0][:, :, :, 4], index, begin, 4, 0.4)
    share = torch.sigmoid(far_lse - local_lse)[..., None]
    torch.testing.assert_close(share * far + (1 - share) * local, whole)


def test_each_slot_has_a_query_of_its_own():
    """Broken: a block is scored with the query of another slot, that is, from another place."""
    torch.manual_seed(1)
    q = torch.randn(1, 1, 2, 2, 8, dtype=torch.float64)
    k, v = torch.randn(2, 1, 1, 11, 8, dtype=torch.float64)
    marks = torch.randn(1, 1, 3, 8, dtype=torch.float64)
    index, begin = torch.tensor([[[[2, 0], [1, -1]]]], dtype=torch.int32), torch.tensor([2])
    out, lse = OP.eager(q, k, v, marks, index, begin, 3, 1.0)
    landmark = torch.stack([marks[0, 0, 2] @ q[0, 0, 0, 0], marks[0, 0, 0] @ q[0, 0, 0, 1]])
    means = [
        (k[0, 0, row : row + 3] @ q[0, 0, 0, slot]).softmax(0) @ v[0, 0, row : row + 3]
        for slot, row in ((0, 8), (1, 2))
    ]
    torch.testing.assert_close(out[0, 0, 0], landmark.softmax(0) @ torch.stack(means))
    torch.testing.assert_close(lse[0, 0, 0], landmark.logsumexp(0))
    torch.testing.assert_close(lse[0, 0, 1], marks[0, 0, 1] @ q[0, 0, 1, 0])


@pytest.mark.parametrize("case", [case for case in OP.cases if case.purpose == "test"], ids=lambda case: case.name)
def test_twins_agree(case, device):
    """Broken: the fused twin errs more than twice as much as the eager one, for some way of sharing blocks."""
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict


@pytest.mark.parametrize("case", ["token", "gone"])
@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_blocks_that_were_not_retrieved_are_not_read(twin, case, device):
    """Broken: what stands in another block, in padding, or in block 0 where a slot holds none, reaches the output."""
    inputs = OP.make(OP.case(case), device, 3)
    clean = getattr(OP, twin)(**inputs)
    batch, block = len(inputs["begin_B"]), inputs["block"]
    for name, wide in (("k_BGSD", block), ("v_BGSD", block), ("mark_BGND", 1)):
        inputs[name] = torch.cat([inputs[name], inputs[name][:, :, :1]], 2)  # a row more than any block has
        used = torch.zeros(inputs[name].shape[:3:2], dtype=torch.bool, device=device)
        for b in range(batch):
            for number in inputs["index_BXYK"][b].unique().tolist():
                first = number * wide + (int(inputs["begin_B"][b]) if wide > 1 else 0)
                used[b, max(0, first) : max(0, first + wide)] |= number >= 0
        inputs[name] = inputs[name].masked_fill(~used[:, None, :, None], float("nan"))
    for found, expected in zip(getattr(OP, twin)(**inputs), clean, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"index_BXYK": torch.zeros(2, 1, 9, 2)}, "expected an index"), ({"block": 0}, "expected blocks of at least one")],
)
def test_an_index_for_other_queries_is_refused(changed, words, device):
    """Broken: an index is broadcast over heads or slots that it was not made for, or blocks are empty."""
    inputs = OP.make(OP.case("token"), device, 3)
    for twin in (OP.eager, OP.fused):
        with pytest.raises(ValueError, match=words):
            twin(**inputs | changed)
