"""The fused twins of landmark attention and its gradient, on small tiles and as an operator of torch.

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, D head dim.
"""

from dataclasses import replace

import pytest
import torch
from torch._dynamo import dont_skip_tracing

from lacuna.kernels.landmark_attention import autograd
from lacuna.kernels.many_rows import RowsCase, Tiles
from lacuna.kernels.op import load_op
from lacuna.kernels.verify import judge, poisoned_memory, verify

FORWARD, GRADIENT = load_op("landmark_attention"), load_op("landmark_gradient")
TESTED = [case for case in FORWARD.cases if case.purpose == "test"]
# several blocks in a tile, a block in a padded one, tiles smaller than a block
TILES = (Tiles(16, 32, 4, 2), Tiles(32, 16, 4, 2))
NAN = float("nan")


@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
def test_twins_agree(case, device):
    """Broken: a fused twin errs more than twice as much as the eager one, for some block, layout or offset."""
    for op in (FORWARD, GRADIENT):
        verdict = verify(op, case, device)
        assert verdict.passed, verdict


@pytest.mark.parametrize(("name", "tiles"), [("packed", TILES[0]), ("offset", TILES[1])])
def test_tiles_do_not_change_the_result(name, tiles, device):
    """Broken: a block that ends within a tile, or a tile that ends within a block, is split or doubled."""
    case = replace(FORWARD.case(name), dtype="float32", head_dim=16)
    inputs = FORWARD.make(case, device, 1)
    verdict = judge(FORWARD, case, inputs, tiles)
    assert verdict.passed, verdict
    inputs = GRADIENT.make(case, device, 1)
    found = backward(inputs, tiles)
    reference = GRADIENT.reference(inputs)
    assert GRADIENT.compare(inputs, found, reference).error < 3e-6


def backward(inputs, tiles):
    from lacuna.kernels.landmark_attention.fused import landmark_forward
    from lacuna.kernels.landmark_gradient.fused import landmark_backward

    q, k, v, grad = (inputs[name] for name in ("q_BHTD", "k_BGSD", "v_BGSD", "grad_BHTD"))
    how = (inputs["block"], inputs["scale"], inputs["start_BS"])
    with poisoned_memory():
        out, lse = landmark_forward(q, k, v, *how, tiles)
        return landmark_backward(q, k, v, out, lse, grad, *how, (tiles, tiles))


def test_padding_may_hold_anything(device):
    """Broken: NaN in rows that are only padding reaches a row of text, or its gradient."""
    case = RowsCase("pads", 2, 2, 1, 60, head_dim=16, block=6, layout="packed", dtype="float32")
    inputs = GRADIENT.make(case, device, 2)
    clean = backward(inputs, TILES[0])
    pads = torch.arange(60, device=device) < inputs["start_BS"]
    assert pads.any()
    for name in ("q_BHTD", "k_BGSD", "v_BGSD", "grad_BHTD"):
        inputs[name].transpose(1, 2)[pads] = NAN
    for found, expected in zip(backward(inputs, TILES[0]), clean, strict=True):
        assert torch.equal(found.transpose(1, 2)[~pads], expected.transpose(1, 2)[~pads])
        assert not found.transpose(1, 2)[pads].any()


def test_strided_tensors_are_read_in_place(device):
    """Broken: heads that lie side by side in each row, as projections give them, are read with wrong strides."""
    case = RowsCase("strides", 1, 4, 2, 40, head_dim=16, block=5, dtype="float32")
    inputs = GRADIENT.make(case, device, 3)
    expected = backward(inputs, TILES[0])
    for name in ("q_BHTD", "k_BGSD", "v_BGSD", "grad_BHTD"):
        inputs[name] = inputs[name].transpose(1, 2).contiguous().transpose(1, 2)
    for found, wanted in zip(backward(inputs, TILES[0]), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def operands(device, dtype=torch.float32):
    case = RowsCase("op", 1, 2, 1, 24, head_dim=16, block=5, dtype="float32")
    inputs = FORWARD.make(case, device, 4)
    return [inputs[name].to(dtype).requires_grad_() for name in ("q_BHTD", "k_BGSD", "v_BGSD")]


def test_the_operator_has_the_eager_gradient(device):
    """Broken: training with the fused kernels follows another gradient than training with plain torch."""
    parts, weight = operands(device), torch.randn(1, 2, 24, 16, device=device)
    found = torch.autograd.grad((autograd.landmark_attention_fused(*parts, 5, 0.3) * weight).sum(), parts)
    expected = torch.autograd.grad((FORWARD.eager(*parts, 5, 0.3) * weight).sum(), parts)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_operator_is_one_node_under_compilation(device):
    """Broken: torch.compile breaks the graph at the kernels, or a compiled model gets another result or gradient."""
    parts = operands(device)

    @dont_skip_tracing  # what lies in a folder of a library's name (tree) would be taken for that library's
    def work(q, k, v):
        return autograd.landmark_attention_fused(q * 2, k, v, 5, 0.3).square()

    compiled = torch.compile(work, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*parts).sum(), parts)
    plain = autograd.landmark_attention_fused(parts[0] * 2, *parts[1:], 5, 0.3).square()
    for one, other in zip(found, torch.autograd.grad(plain.sum(), parts), strict=True):
        torch.testing.assert_close(one, other)


def test_the_operator_keeps_to_the_rules_of_torch(device):
    """Broken: the shapes promised to the compiler, or the gradient's registration, are not those of the kernels."""
    parts = operands(device)
    starts = torch.tensor([[2] * 11 + [11] * 13], dtype=torch.int32, device=device)
    found = torch.library.opcheck(autograd.FORWARD, (*parts, 5, 0.3, starts))
    assert len(found) >= 3
    assert set(found.values()) == {"SUCCESS"}


class Attention(torch.nn.Module):
    """Three heads from one projection, in one layer."""

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(16, 48)

    def forward(self, x):
        """Attend from x (B, T, 16)."""
        q, k, v = (part[:, None] for part in self.project(x).chunk(3, -1))
        return autograd.landmark_attention_fused(q, k, v, 5, 0.3)


def test_the_operator_trains_under_ddp(tmp_path, device):
    """Broken: a model with the fused kernels gets no gradient, or another one, when it is trained on several ranks."""
    torch.manual_seed(0)
    model, x = Attention().to(device), torch.randn(1, 13, 16, device=device)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        torch.nn.parallel.DistributedDataParallel(model)(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


def test_in_place_of_sdpa(device):
    """Broken: the one call that replaces scaled_dot_product_attention has another scale, or refuses long blocks."""
    parts = operands(device)
    expected = FORWARD.eager(*parts, 5, 0.25)
    torch.testing.assert_close(autograd.landmark_sdpa(*parts, 5), expected, rtol=1e-4, atol=1e-5)
    dense = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(autograd.landmark_sdpa(*parts, 200), dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("block", "scale", "message"), [(200, 1.0, "at most 128"), (5, -1.0, "positive")])
def test_what_the_kernels_cannot_do_is_refused(block, scale, message, device):
    """Broken: a block that no tile holds, or a scale that turns maxima around, gives wrong numbers."""
    with pytest.raises(ValueError, match=message):
        FORWARD.fused(*operands(device), block, scale)
