"""Attention to retrieved blocks against landmark attention itself, and the twins against each other.

Shape legend: B batch, H query heads, G KV heads, T query rows, N blocks, C rows of a block, K blocks retrieved.
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
    index = torch.tensor([2, 0, 3, 1], dtype=torch.int32).expand(2, 1, 1, 4)
    far, far_lse = OP.eager(q[:, :, :, None].expand(-1, -1, -1, 4, -1), *blocks, index, 0.4)
    share = torch.sigmoid(far_lse - local_lse)[..., None]
    torch.testing.assert_close(share * far + (1 - share) * local, whole)


def test_each_slot_has_a_query_of_its_own():
    """Broken: a block is scored with the query of another slot, that is, from another place."""
    torch.manual_seed(1)
    q = torch.randn(1, 1, 2, 2, 8, dtype=torch.float64)
    k, v = torch.randn(2, 1, 1, 3, 4, 8, dtype=torch.float64)
    out, lse = OP.eager(q, k, v, torch.tensor([[[[2, 0], [1, -1]]]], dtype=torch.int32), 1.0)
    landmark = torch.stack([k[0, 0, 2, 3] @ q[0, 0, 0, 0], k[0, 0, 0, 3] @ q[0, 0, 0, 1]])
    means = [
        (k[0, 0, block, :3] @ q[0, 0, 0, slot]).softmax(0) @ v[0, 0, block, :3] for slot, block in ((0, 2), (1, 0))
    ]
    torch.testing.assert_close(out[0, 0, 0], landmark.softmax(0) @ torch.stack(means))
    torch.testing.assert_close(lse[0, 0, 0], landmark.logsumexp(0))
    torch.testing.assert_close(lse[0, 0, 1], k[0, 0, 1, 3] @ q[0, 0, 1, 0])


@pytest.mark.parametrize("case", [case for case in OP.cases if case.purpose == "test"], ids=lambda case: case.name)
def test_twins_agree(case, device):
    """Broken: the fused twin errs more than twice as much as the eager one, for some way of sharing blocks."""
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_blocks_that_were_not_retrieved_are_not_read(twin, device):
    """Broken: what stands in another block, or in block 0 where a slot holds none, reaches the output."""
    inputs = OP.make(OP.case("token"), device, 3)
    clean = getattr(OP, twin)(**inputs)
    used = inputs["index_BXYK"].unique()
    for name in ("k_BGNCD", "v_BGNCD"):
        spoilt = [block for block in range(inputs[name].shape[2]) if block not in used.tolist()]
        inputs[name] = torch.cat([inputs[name], torch.full_like(inputs[name][:, :, :1], float("nan"))], 2)
        inputs[name][:, :, spoilt] = float("nan")
    for found, expected in zip(getattr(OP, twin)(**inputs), clean, strict=True):
        assert torch.equal(found, expected)


def test_an_index_for_other_queries_is_refused(device):
    """Broken: an index is broadcast over heads or slots that it was not made for."""
    inputs = OP.make(OP.case("token"), device, 3)
    for twin in (OP.eager, OP.fused):
        with pytest.raises(ValueError, match="expected an index"):
            twin(**inputs | {"index_BXYK": inputs["index_BXYK"][..., :2]})
