"""Rows turned and written over rows of a cache: both twins against complex numbers, and against each other.

Shape legend: B batch, G KV heads, E rows, S rows in the cache, D head dim, R turned dims.
"""

import pytest
import torch

from lacuna.kernels.op import load_op
from lacuna.kernels.verify import verify

OP = load_op("put_turned")
TESTED = [case for case in OP.cases if case.purpose == "test"]


@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
def test_twins_agree(case, device):
    """Broken: the fused twin errs more than twice as much as the eager one, for some dim, number of rows or place."""
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict


def turned(x_ED, cos_ER, sin_ER):
    """Pairs (i, i + R/2) as complex numbers, of one head."""
    half = cos_ER.shape[1] // 2
    pair = torch.complex(x_ED[:, :half], x_ED[:, half : 2 * half]) * torch.complex(cos_ER, sin_ER)[:, :half]
    return torch.cat([pair.real, pair.imag, x_ED[:, 2 * half :]], -1)


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
def test_a_row_is_turned_by_its_own_angle_and_written_alone(case, twin, device):
    """Broken: a sink gets another row's angle or place, dims that stay are turned, or a row that is not a sink is lost."""
    inputs = OP.make(case, device, 1)
    expected, places = inputs["cache_BGSD"].double(), inputs["place_BE"].tolist()
    for b in range(case.batch):
        for head in range(case.kv_heads):
            rows = turned(*(inputs[name].double()[at] for name, at in
                            (("x_BGED", (b, head)), ("cos_BER", b), ("sin_BER", b))))  # fmt: skip
            for row, place in enumerate(places[b]):
                if place >= 0:
                    expected[b, head, place] = rows[row]
    before = inputs["cache_BGSD"].clone()
    found = getattr(OP, twin)(**inputs)
    assert found is inputs["cache_BGSD"]
    tolerance = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[case.dtype]
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    untouched = torch.ones(case.batch, case.rows, dtype=torch.bool)
    for b, some in enumerate(places):
        untouched[b, [place for place in some if place >= 0]] = False
    assert bool((found == before).all(-1).all(1)[untouched.to(device)].all())
    assert case.visible == "full" or bool((inputs["place_BE"] < 0).any())


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_strides_are_the_tensors_own(twin, device):
    """Broken: a view of a larger cache, or places that do not follow each other, are taken for contiguous ones."""
    inputs = OP.make(OP.case("part_80"), device, 2)
    expected = getattr(OP, twin)(**OP.fresh(inputs)).clone()
    wide = inputs["cache_BGSD"].new_zeros(2, 3, 40, 96)
    view = wide[:, :2, 5:26, :80]
    view.copy_(inputs["cache_BGSD"])
    places = torch.stack([inputs["place_BE"]] * 2, -1)[..., 0]
    x = inputs["x_BGED"].transpose(1, 2).contiguous().transpose(1, 2)
    getattr(OP, twin)(**inputs | {"cache_BGSD": view, "place_BE": places, "x_BGED": x})
    assert torch.equal(view, expected)
    assert not wide[:, 2].any()
    assert not wide[:, :, :5].any()


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"cos_BER": torch.zeros(2, 4, 63), "sin_BER": torch.zeros(2, 4, 63)}, "of an even width up to 64"),
     ({"place_BE": torch.zeros(2, 3, dtype=torch.int64)}, "for each of 2 x 4 rows"),
     ({"cos_BER": torch.zeros(1, 4, 64), "sin_BER": torch.zeros(1, 4, 64)}, "for each of 2 x 4 rows"),
     ({"cache_BGSD": torch.zeros(2, 1, 37, 64)}, "a cache of rows like"),
     ({"cache_BGSD": torch.zeros(2, 2, 37, 64, dtype=torch.float16)}, "a cache of rows like")],
)  # fmt: skip
def test_what_belongs_to_other_rows_is_refused(changed, words, device):
    """Broken: a kernel reads angles or places beyond their end, or writes beyond the cache."""
    inputs = OP.make(OP.case("sinks_64"), device, 0) | {name: part.to(device) for name, part in changed.items()}
    for twin in (OP.eager, OP.fused):
        with pytest.raises(ValueError, match=words):
            twin(**inputs)
