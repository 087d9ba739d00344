"""Products of few tokens: any cut of the weight gives the product, and nothing else is written.

Shape legend: B tokens, E inputs, F outputs.
"""

import pytest
import torch
from torch.nn.functional import linear

from lacuna.kernels.op import load_op
from lacuna.kernels.skinny_linear.cut import SkinnyPlan, skinny_plan, stages, tile_tokens
from lacuna.kernels.skinny_linear.fused import skinny_linear
from lacuna.kernels.verify import SUM_EPS, poisoned_memory

OP = load_op("skinny_linear")
HOPPER = 232448  # bytes of shared memory that a block may have there
SMS = 132
NAN = float("nan")
CUTS = [  # tokens, inputs, outputs, plan
    (1, 64, 96, SkinnyPlan(64, 64, 64, 4, 3, 512)),
    (3, 200, 131, SkinnyPlan(40, 64, 64, 4, 2, 512)),
    (16, 512, 131, SkinnyPlan(109, 128, 128, 4, 3, 512)),
    (17, 136, 300, SkinnyPlan(109, 128, 64, 4, 5, 0)),
    (32, 256, 65, SkinnyPlan(1, 64, 256, 4, 4, 512)),
    (33, 99, 70, SkinnyPlan(33, 64, 64, 4, 2, 512)),
]


def drawn(tokens, inputs, outputs, dtype, device):
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((tokens, inputs), (outputs, inputs), (outputs,))
    x_BE, weight_FE, bias_F = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return x_BE, weight_FE / inputs**0.5, bias_F


def check(got, x_BE, weight_FE, bias_F):
    """The error is at most twice torch's, both against float64."""
    exact = x_BE.double() @ weight_FE.double().T + (0.0 if bias_F is None else bias_F.double())
    theirs = (linear(x_BE, weight_FE, bias_F).double() - exact).abs().max()
    assert got.dtype == x_BE.dtype
    assert (got.double() - exact).abs().max() <= 2 * theirs + SUM_EPS * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("tokens", "inputs", "outputs", "plan"), CUTS)
def test_any_cut_gives_the_product(tokens, inputs, outputs, plan, biased, dtype, device):
    """Broken: rows at the border of two blocks, inputs behind the last tile, or tokens beyond a tile are lost."""
    x_BE, weight_FE, bias_F = drawn(tokens, inputs, outputs, dtype, device)
    bias_F = bias_F if biased else None
    with poisoned_memory():
        check(skinny_linear(x_BE, weight_FE, bias_F, None, plan), x_BE, weight_FE, bias_F)


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("tokens", [1, 16, 32, 33])
def test_a_product_is_written_where_it_is_asked_for(tokens, biased, twin, device):
    """Broken: a rank's part is not where the others read it, or what lies beside it is overwritten."""
    x_BE, weight_FE, bias_F = drawn(tokens, 96, 70, torch.bfloat16, device)
    bias_F = bias_F if biased else None
    whole = torch.full((tokens + 2, 80), NAN, dtype=torch.bfloat16, device=device)
    out_BF = whole[1:-1, 5:75]
    assert getattr(OP, twin)(x_BE, weight_FE, bias_F, out_BF) is out_BF
    check(out_BF, x_BE, weight_FE, bias_F)
    assert int(whole.isnan().sum()) == whole.numel() - out_BF.numel()


def test_columns_of_a_wider_product_are_multiplied_in_place(device):
    """Broken: inputs that are columns of another product are read with a wrong stride, or across it."""
    x_BE, weight_FE, _ = drawn(5, 96, 70, torch.float16, device)
    wider = torch.full((5, 130), NAN, dtype=torch.float16, device=device)
    wider[:, 7:103] = x_BE
    for view in (wider[:, 7:103], x_BE.T.contiguous().T):
        check(OP.fused(view, weight_FE), x_BE, weight_FE, None)


def test_a_weight_of_another_layout_is_multiplied_by_torch(device):
    """Broken: a transposed weight is read as if its rows lay one behind the other."""
    x_BE, weight_FE, bias_F = drawn(5, 96, 70, torch.float16, device)
    check(OP.fused(x_BE, weight_FE.T.contiguous().T, bias_F), x_BE, weight_FE, bias_F)


def test_a_bias_with_a_stride_is_added_as_it_is(device):
    """Broken: a bias that is every other number of a longer one, or one number for all, is read past its end."""
    x_BE, weight_FE, bias_F = drawn(5, 96, 70, torch.float16, device)
    wider = torch.full((70, 2), NAN, dtype=torch.float16, device=device)
    wider[:, 0] = bias_F
    for bias in (wider[:, 0], bias_F[:1].expand(70)):
        check(OP.fused(x_BE, weight_FE, bias), x_BE, weight_FE, bias)


@pytest.mark.parametrize(("more", "out"), [(1, None), (0, (5, 69)), (0, (4, 70))])
def test_shapes_that_do_not_fit_are_refused(more, out, device):
    """Broken: a weight of other inputs is read with a wrong pitch, or a result that is too small written past its end."""
    x_BE, _, _ = drawn(5, 96, 70, torch.float16, device)
    _, weight_FE, _ = drawn(5, 96 + more, 70, torch.float16, device)
    with pytest.raises(ValueError, match="expected x"):
        OP.fused(x_BE, weight_FE, None, None if out is None else x_BE.new_empty(out))


def test_no_outputs_are_none(device):
    """Broken: a layer without outputs divides by them."""
    assert OP.fused(*drawn(5, 96, 0, torch.float16, device)).shape == (5, 0)


@pytest.mark.parametrize(("tokens", "dtype"), [(33, torch.float16), (200, torch.bfloat16), (4, torch.float32)])
def test_what_torch_multiplies_faster_is_left_to_it(tokens, dtype, device):
    """Broken: many tokens, or float32, are multiplied by a kernel that is slower than torch's."""
    inputs = drawn(tokens, 96, 70, dtype, device)
    assert skinny_plan(tokens, 70, dtype.itemsize, SMS, HOPPER) is None
    assert torch.equal(OP.fused(*inputs), linear(*inputs))


def test_a_gpu_with_less_shared_memory_is_left_to_torch():
    """Broken: a launch asks for more shared memory than a GPU before Hopper has."""
    assert skinny_plan(16, 4096, 2, 108, 166912) is None
    assert skinny_plan(16, 4096, 2, SMS, HOPPER) is not None


@pytest.mark.parametrize("tokens", [1, 16, 17, 32])
@pytest.mark.parametrize("outputs", [1, 60, 131, 3840, 4096, 5120, 6144, 6912, 8448, 8449, 15360, 28672, 33793, 128256])
def test_every_block_has_an_even_share(outputs, tokens):
    """Broken: some SMs multiply more rows than others, which all wait for, or tiles do not fit into shared memory."""
    plan = skinny_plan(tokens, outputs, 2, SMS, HOPPER)
    blocks_an_sm = 1 if outputs <= 64 * SMS else 2
    blocks, slots = -(-outputs // plan.rows), blocks_an_sm * SMS
    waves = -(-blocks // slots)
    assert waves == -(-outputs // (128 * slots))
    assert plan.rows == -(-outputs // (waves * slots))
    assert plan.rows <= plan.block_rows <= 128
    tiles = plan.num_stages * plan.block_inputs * (plan.block_rows + tile_tokens(tokens)) * 2
    assert plan.num_stages >= 3
    assert blocks_an_sm * (tiles + 1024) <= 228 * 1024
    assert stages(plan.block_rows, plan.block_inputs, tokens, blocks_an_sm) == plan.num_stages
