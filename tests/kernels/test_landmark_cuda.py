"""Landmark attention and its gradient on a GPU: shapes that take too long in Triton's interpreter.

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, D head dim.
"""

import pytest
import torch

from lacuna.kernels.landmark_attention import autograd
from lacuna.kernels.many_rows import RowsCase
from lacuna.kernels.op import load_op
from lacuna.kernels.verify import verify

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
FORWARD, GRADIENT = load_op("landmark_attention"), load_op("landmark_gradient")


SHAPES = [(16, 64), (16, 128), (17, 96), (51, 128), (64, 96), (64, 128), (100, 64), (128, 128)]


@pytest.mark.parametrize(("block", "dim"), SHAPES)
def test_blocks_and_dims(block, dim, device):
    """Broken: some block from 16 to 128, or some dim, gives other numbers: behind an offset, between pads, or packed."""
    for layout, queries in (("plain", 333), ("padded", 0), ("packed", 0)):
        case = RowsCase(layout, 2, 4, 2, 701, head_dim=dim, block=block, queries=queries, layout=layout)
        for op in (FORWARD, GRADIENT):
            verdict = verify(op, case, device)
            assert verdict.passed, verdict


class Attention(torch.nn.Module):
    """Four heads of two groups from one projection, in one layer."""

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(256, 512)

    def forward(self, x):
        """Attend from x (B, T, 256)."""
        q, k, v = self.project(x).split([256, 128, 128], -1)
        heads = [part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in (q, k, v)]
        return autograd.landmark_sdpa(*heads, 51).transpose(1, 2).flatten(2)


def test_a_model_trains_when_it_is_compiled(device):
    """Broken: the compiler's own kernels around the operator give it tensors that it misreads, or drop its gradient."""
    torch.manual_seed(0)
    model, x = Attention().to(device), torch.randn(2, 300, 256, device=device)
    expected = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True)
    found = torch.autograd.grad(compiled(x).square().mean(), list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_ranks_add_up_their_gradients(tmp_path, device):
    """Broken: under DistributedDataParallel over NCCL the operator's gradients are not those of the whole batch."""
    torch.manual_seed(0)
    model, x = Attention().to(device), torch.randn(2, 120, 256, device=device)
    expected = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        spread = torch.nn.parallel.DistributedDataParallel(model, device_ids=[torch.cuda.current_device()])
        for part in x.split(1):  # two steps of half a batch, as two ranks would take them
            (spread(part).square().mean() / 2).backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=1e-6)
