"""One token turned, projected and written into caches, against the definition.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, R leading columns.
"""

from dataclasses import replace

import pytest
import torch

from lacuna.kernels.append_row import OP as APPEND
from lacuna.kernels.op import Case, load_op
from lacuna.kernels.verify import judge, poisoned_memory

SHAPES = (
    Case("gqa1", 2, 2, 2, 7, head_dim=64, low_dims=16, dtype="float32"),
    Case("plain", 3, 6, 2, 45, head_dim=96, reduce="sum", dtype="float32"),
    Case("gqa16", 2, 32, 2, 13, head_dim=128, low_dims=40, dtype="float32"),
    Case("whole", 1, 8, 1, 33, head_dim=256, low_dims=256, dtype="float32"),
    Case("unsummed", 2, 4, 2, 9, head_dim=64, low_dims=16, dtype="float32", visible="full"),
)


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.name)
def test_an_appended_row_is_turned_projected_and_alone(case, twin, device):
    """Broken: a step writes another row than its own, leaves a column unwritten, projects before it turns, or loses a sum."""
    inputs = APPEND.make(case, device, 0)
    before = {name: inputs[name].clone() for name in APPEND.writes}
    with poisoned_memory():
        q_BHD, *caches, sums_BGC = getattr(APPEND, twin)(**inputs)
    turned_q, turned_k = load_op("rotate_rows").reference(
        {n: inputs[n] for n in ("q_BHD", "k_BGD", "cos_BD", "sin_BD")}
    )
    basis = torch.cat([inputs["lead_GDR"], inputs["rest_GDQ"]], -1).double()
    if basis.shape[-1]:
        turned_k = torch.einsum("bgd,gde->bge", turned_k, basis)
        turned_q = torch.einsum("bgjd,gde->bgje", turned_q.unflatten(1, (case.kv_heads, -1)), basis).flatten(1, 2)
    lead = inputs["lead_GDR"].shape[2]
    torch.testing.assert_close(q_BHD.double(), turned_q, rtol=0, atol=1e-5)
    summed = before.pop("sums_BGC")
    assert sums_BGC.data_ptr() == inputs["sums_BGC"].data_ptr()
    assert torch.equal(sums_BGC, summed + inputs["v_BGD"][..., : summed.shape[2]])
    for cache, old, new in zip(caches, before.values(), (turned_k, inputs["v_BGD"], turned_k[..., :lead]), strict=True):
        for b, place in enumerate(inputs["place_B"].tolist()):
            torch.testing.assert_close(cache[b, :, place].double(), new[b].double(), rtol=0, atol=1e-5)
            old[b, :, place] = cache[b, :, place]
        assert torch.equal(cache, old)


def test_verification_runs_each_twin_on_inputs_of_its_own(device):
    """Broken: a twin that writes in place hands what it wrote to the next one, and is verified against itself."""
    inputs = APPEND.make(APPEND.cases[0], device, 0)
    before = {name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)}
    assert judge(APPEND, APPEND.cases[0], inputs).passed
    assert all(torch.equal(inputs[name], old) for name, old in before.items())


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize("width", [5, 96])
@pytest.mark.parametrize("case", [SHAPES[1], replace(SHAPES[1], reduce="max", low_dims=40)], ids=["plain", "projected"])
def test_columns_are_kept_once_more_in_any_layout(case, width, twin, device):
    """Broken: a copy laid out by component gets another row's place, other columns, or keys that were not turned."""
    inputs = APPEND.make(case, device, 0)
    by_column = torch.full((case.batch, case.kv_heads, width, 64), 7.0, device=device)
    inputs["leads_BGSW"] = by_column.transpose(2, 3)[:, :, : case.rows]
    before = inputs["keys_BGSD"].clone()
    with poisoned_memory():
        _, keys, _, leads, _ = getattr(APPEND, twin)(**inputs)
    assert leads.data_ptr() == by_column.data_ptr()
    written = torch.zeros(case.batch, 64, dtype=torch.bool, device=device)
    for b, place in enumerate(inputs["place_B"].tolist()):
        assert not torch.equal(keys[b, :, place], before[b, :, place])
        assert torch.equal(by_column[b, :, :, place], keys[b, :, place, :width])
        written[b, place] = True
    assert bool((by_column.transpose(2, 3)[~written[:, None].expand(-1, case.kv_heads, -1)] == 7).all())


def test_sums_that_are_not_contiguous_are_refused(device):
    """Broken: values are added to what lies where the sums are not."""
    inputs = APPEND.make(SHAPES[0], device, 0)
    inputs["sums_BGC"] = inputs["sums_BGC"].mT.contiguous().mT
    with pytest.raises(ValueError, match="contiguous sums"):
        APPEND.fused(**inputs)
