"""SparQ's weights, number by number as the paper has them.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, R components.
"""

import math

import pytest
import torch

from lacuna.kernels.op import Case
from lacuna.kernels.sparq_score import OP as SPARQ_SCORE
from lacuna.kernels.sparq_score.eager import joined_parts
from lacuna.kernels.sparq_score.fused import aligned_rows, by_product
from lacuna.kernels.tiling import Plan
from lacuna.kernels.verify import poisoned_memory
from lacuna.kernels.visible import visible_rows

CASES = (
    Case("gqa4", 2, 8, 2, 37, head_dim=64, low_dims=16, kept=8, dtype="float32"),
    Case("gqa1", 2, 3, 3, 21, head_dim=96, low_dims=20, kept=9, dtype="float32"),
    Case("gqa16", 1, 16, 1, 33, head_dim=128, low_dims=128, kept=4, dtype="float32"),
    Case(
        "wide", 1, 2, 1, 40, head_dim=512, low_dims=300, kept=8, dtype="bfloat16"
    ),  # not by a product: bfloat16 lacks these numbers
)


def weights_of(q_JD, k_DS, components, scale):
    """Algorithm 1 of the paper, the components shared by the heads of a group."""
    size = [sum(abs(float(q[d])) for q in q_JD) for d in range(q_JD.shape[1])]
    best = sorted(range(len(size)), key=lambda d: (-size[d], d))[:components]
    found = []
    for q in q_JD.double():
        part = q[best].abs().sum() / q.abs().sum()
        found.append((q[best] @ k_DS[best].double() * scale / math.sqrt(part)).softmax(-1))
    return torch.stack(found)


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_weights_are_those_of_the_paper(case, twin, device):
    """Broken: other components are read, the temperature is wrong, hidden rows weigh something."""
    inputs = SPARQ_SCORE.make(case, device, 3)
    plan = {} if twin == "eager" else {"plan": Plan(16, 2, 4, 2)}
    with poisoned_memory():
        score_BHS, part_BHX2 = getattr(SPARQ_SCORE, twin)(**inputs, **plan)
    assert part_BHX2.shape[2] == (1 if twin == "eager" else 2), "splits"
    weight_BHS = (score_BHS - joined_parts(part_BHX2)[..., None]).exp().nan_to_num(0.0)
    assert bool((score_BHS[-1] == -math.inf).all()) == (case.batch > 1), "the last of several sequences is empty"
    group = case.q_heads // case.kv_heads
    for b, (lo, hi) in enumerate(zip(inputs["lo_B"].tolist(), inputs["hi_B"].tolist(), strict=True)):
        for g in range(case.kv_heads):
            heads = slice(g * group, (g + 1) * group)
            want = torch.zeros(group, case.rows, dtype=torch.float64)
            if hi > lo:
                k_DS = inputs["k_BGDS"][b, g, :, lo:hi].cpu()
                want[:, lo:hi] = weights_of(inputs["q_BHD"][b, heads].cpu(), k_DS, case.low_dims, inputs["scale"])
            torch.testing.assert_close(weight_BHS[b, heads].cpu().double(), want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_each_part_tells_of_its_own_rows(twin, device):
    """Broken: a part's sum is not of exp(score - its largest), or hidden rows, or a part without rows, count."""
    inputs, plan = SPARQ_SCORE.make(CASES[0], device, 3), {} if twin == "eager" else {"plan": Plan(16, 2, 4, 2)}
    with poisoned_memory():
        score_BHS, part_BHX2 = getattr(SPARQ_SCORE, twin)(**inputs, **plan)
    rows = 32 if plan else CASES[0].rows
    for part, score_BHP in zip(part_BHX2.unbind(2), score_BHS.double().split(rows, -1), strict=True):
        top_BH = score_BHP.amax(-1)
        assert torch.equal(part[..., 0].double(), top_BH)
        want_BH = (score_BHP - top_BH.clamp_min(-1e30)[..., None]).exp().sum(-1)
        torch.testing.assert_close(part[..., 1].double(), want_BH)


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_a_head_without_the_components_weighs_all_rows_alike(twin, device):
    """Broken: a head whose own largest components are not its group's divides by zero, and spreads NaN."""
    inputs = SPARQ_SCORE.make(CASES[0], device, 3)
    inputs["q_BHD"][:, 0] = 0.0
    with poisoned_memory():
        score_BHS, part_BHX2 = getattr(SPARQ_SCORE, twin)(**inputs)
    lo, hi = int(inputs["lo_B"][0]), int(inputs["hi_B"][0])
    assert not score_BHS[0, 0, lo:hi].any()
    torch.testing.assert_close(float(joined_parts(part_BHX2)[0, 0]), math.log(hi - lo))


@pytest.mark.parametrize("room", [60, 64])
def test_keys_by_component_are_read_in_place(room, device):
    """Broken: a cache that grows by whole columns must be copied to be read; a row beyond the visible ones counts."""
    inputs = SPARQ_SCORE.make(CASES[0], device, 3)
    expected = SPARQ_SCORE.fused(**inputs)
    longer = torch.full((*inputs["k_BGDS"].shape[:3], room), float("nan"), device=device)[..., : CASES[0].rows]
    hidden = ~visible_rows(inputs["lo_B"], inputs["hi_B"], CASES[0].rows)[:, None]
    longer.copy_(inputs["k_BGDS"].masked_fill(hidden, float("nan")))
    found = SPARQ_SCORE.fused(**inputs | {"k_BGDS": longer})
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_wide_loads_end_within_the_component(device):
    """Broken: the last visible row, rounded up to a wide load, reads the next component, or memory that is not ours."""
    k_BGDS = SPARQ_SCORE.make(CASES[0], device, 3)["k_BGDS"]
    whole = k_BGDS.new_zeros(*k_BGDS.shape[:3], 64)
    assert aligned_rows(k_BGDS) == 1, "37 rows"
    assert aligned_rows(whole[..., :37]) == 16 // whole.element_size()
    assert aligned_rows(whole[..., 1:38]) == 1, "components begin between"


@pytest.mark.parametrize("dim", [64, 8])
def test_a_query_with_nan_scores_nan_and_reads_no_other_memory(dim, device):
    """Broken: components of a query that has no order are added up, and keys far behind the cache are read."""
    case = Case("nan", 2, 4, 2, 40, head_dim=dim, low_dims=dim // 4, kept=8, dtype="float32", visible="full")
    inputs = SPARQ_SCORE.make(case, device, 3)
    inputs["q_BHD"][0, 1, 5] = math.nan
    with poisoned_memory():
        score_BHS, _ = SPARQ_SCORE.fused(**inputs)
    assert bool(score_BHS[0, 1].isnan().all())
    clean = SPARQ_SCORE.fused(**inputs | {"q_BHD": inputs["q_BHD"].nan_to_num(0.0)})[0]
    assert torch.equal(score_BHS[0, 2:], clean[0, 2:])
    assert torch.equal(score_BHS[1], clean[1])


def test_components_are_numbered_exactly_and_places_fit():
    """Broken: components beyond 256 are rounded to others in bfloat16, or a launch asks for more memory than an SM has."""
    assert by_product(128, 32)
    assert by_product(256, 128)
    assert not by_product(8, 4)
    assert not by_product(257, 16)
    assert not by_product(256, 256)
