"""Landmark attention and its gradient on a GPU: shapes that take too long in Triton's interpreter.

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, D head dim.
"""

import pytest
import torch
from torch._dynamo import dont_skip_tracing

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

    @dont_skip_tracing  # what lies in a folder of a library's name (tree) would be taken for that library's
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


def extra_bytes(call):
    """The most memory that a call holds beside what was there before it."""
    call()  # what is compiled and kept for good
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def test_memory_grows_with_the_rows_alone(device):
    """Broken: forward or backward stores something for each pair of rows, and long rows no longer fit."""
    parts = [torch.randn(1, 8, 8192, 64, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    grad = torch.randn_like(parts[0])
    held = extra_bytes(lambda: torch.autograd.grad(autograd.landmark_sdpa(*parts, 64), parts, grad))
    assert held < 6 * parts[0].nbytes < 8192 * 8192  # a byte for each pair of one head


def test_retrieved_blocks_are_not_copied(device):
    """Broken: the blocks of each token and head are gathered into a tensor of T x K x C x D before they are attended."""
    op = load_op("landmark_retrieve")
    case = next(case for case in op.cases if case.purpose == "time" and case.by == "token_and_head")
    inputs = op.make(case, device, 0)
    gathered = case.new * case.q_heads * case.kept * case.block * case.head_dim * case.item_bytes
    out = case.new * case.q_heads * case.head_dim * case.item_bytes
    assert extra_bytes(lambda: op.fused(**inputs)) < 2 * out < gathered / 50
