"""Rows turned by rotary angles: both twins against complex numbers, and against each other.

Shape legend: B batch, H heads, T rows, K turns of each row, D head dim, R turned dims.
"""

import pytest
import torch

from lacuna.kernels.op import load_op
from lacuna.kernels.verify import verify

OP = load_op("turn_rows")
TESTED = [case for case in OP.cases if case.purpose == "test"]


@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
def test_twins_agree(case, device):
    """Broken: the fused twin errs more than twice as much as the eager one, for some index, dim or stride."""
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize("name", ["own", "heads", "partial"])
def test_pairs_are_complex_numbers(name, twin, device):
    """Broken: a pair is turned the other way, by another row's angle, or dims that stay are turned."""
    case = OP.case(name)
    inputs = OP.make(case, device, 1)
    x, row = inputs["x_BHTD"].double(), inputs["row_BXTK"]
    half = inputs["cos_PR"].shape[1] // 2
    factor = torch.complex(inputs["cos_PR"].double(), inputs["sin_PR"].double())[:, :half]
    factor = factor.view(case.batch, 1, case.new, 1, half) if row is None else factor[row.long()]
    pair = torch.complex(x[..., :half], x[..., half : 2 * half])[:, :, :, None] * factor
    expected = torch.cat([pair.real, pair.imag, x[:, :, :, None, 2 * half :].expand(*pair.shape[:4], -1)], -1)
    found = getattr(OP, twin)(**inputs)
    assert found.dtype == inputs["x_BHTD"].dtype
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_the_first_sequence_alone_is_turned_as_in_its_batch(twin, device):
    """Broken: a decode step cannot be held against float64, which takes the first text and leaves the table whole."""
    inputs = OP.make(OP.case("own"), device, 3)
    whole = getattr(OP, twin)(**inputs)
    assert len(whole) > 1
    alone = getattr(OP, twin)(**inputs | {"x_BHTD": inputs["x_BHTD"][:1]})
    assert torch.equal(alone, whole[:1])


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"row_BXTK": torch.zeros(2, 1, 20, 2, dtype=torch.int32)}, "expected an index for rows"),
     ({"row_BXTK": None}, "expected an angle for each of 2 x 21 rows, got 50"),
     ({"cos_PR": torch.zeros(50, 31), "sin_PR": torch.zeros(50, 31)}, "of an even width up to 32")],
)  # fmt: skip
def test_angles_for_other_rows_are_refused(changed, words, device):
    """Broken: angles are broadcast over rows that they were not made for, or read beyond their end."""
    inputs = OP.make(OP.case("table"), device, 0) | changed
    for twin in (OP.eager, OP.fused):
        with pytest.raises(ValueError, match=words):
            twin(**inputs)


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_one_row_of_each_text_is_a_pair_of_complex_numbers(twin, device):
    """Broken: a decode step turns queries or keys the other way, or by another text's angle."""
    rotate = load_op("rotate_rows")
    inputs = rotate.make(rotate.case("gqa3_96"), device, 2)
    angle_BX = torch.complex(inputs["cos_BD"].double(), inputs["sin_BD"].double())[:, None, :48]
    for name, found in zip(("q_BHD", "k_BGD"), getattr(rotate, twin)(**inputs), strict=True):
        pair = torch.complex(*inputs[name].double().chunk(2, -1)) * angle_BX
        torch.testing.assert_close(found.double(), torch.cat([pair.real, pair.imag], -1), atol=2e-2, rtol=1e-2)


def test_angles_of_a_part_of_a_head_are_refused_for_whole_heads(device):
    """Broken: a rotation of half a head runs on a CPU, where a GPU would read angles that are not there."""
    rotate = load_op("rotate_rows")
    inputs = rotate.make(rotate.case("mha_64"), device, 0)
    with pytest.raises(ValueError, match="expected angles of width 64, got"):
        rotate.eager(**inputs | {name: inputs[name][:, :32] for name in ("cos_BD", "sin_BD")})
