"""What rows that were not attended would have added, against the sum written out for each head.

Shape legend: B batch, H query heads, G KV heads, D head dim.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

SPEC = importlib.util.spec_from_file_location("ops", Path(__file__).with_name("test_ops.py"))
ops = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ops)


@ops.both
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("case", ops.SHAPES, ids=lambda case: case.name)
def test_the_mean_takes_the_weight_that_is_missing(case, mean, twin, device):
    """Broken: the mean is that of another head, the weights do not sum to one, or a text of nothing is not zero."""
    inputs = ops.inputs_of("fill_missing", case, device)
    inputs["share_BH"][0, 0] = 1.0 + 1e-6  # rounding alone can make a share so large
    if not mean:
        inputs["sum_BGD"] = None
    filled_BHD = ops.run("fill_missing", twin, inputs).double().cpu()
    group = case.q_heads // case.kv_heads
    for b, context in enumerate(inputs["context_B"].tolist()):
        for h in range(case.q_heads):
            share = min(1.0, float(inputs["share_BH"][b, h]))
            missing = (1 - share) * inputs["factor"]
            want_D = inputs["out_BHD"][b, h].double().cpu() * share / (share + missing)
            if mean and context:
                want_D += inputs["sum_BGD"][b, h // group].double().cpu() / context * missing / (share + missing)
            want_D = want_D if context else torch.zeros_like(want_D)
            torch.testing.assert_close(filled_BHD[b, h], want_D, rtol=1e-5, atol=1e-6)


@ops.both
def test_a_share_that_is_no_number_is_told(twin, device):
    """Broken: a NaN of the scores becomes a plausible output."""
    inputs = ops.inputs_of("fill_missing", ops.SHAPES[0], device)
    inputs["share_BH"][0, 1] = ops.NAN
    filled_BHD = ops.run("fill_missing", twin, inputs)
    assert filled_BHD[0, 1].isnan().all()
    assert not filled_BHD[0, 0].isnan().any()
