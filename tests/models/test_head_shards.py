"""Tensor parallelism without a model around it: heads on two ranks and heads on one, given the same rows, bit for bit."""

from types import SimpleNamespace

import pytest
import torch
from conftest_models import DIM, LAYERS, gap_cases, make_method, make_model
from torch.nn.functional import pad

from lacuna.models import bind
from lacuna.models.inserted import Feed
from lacuna.models.shard import Shard

BATCH = 16  # whole vectors: the end of a row that fills none is rounded by another instruction
GROUP = 2  # query heads of a key/value head
CALLS = (24, 1, 1, 1, 9, 1)  # a prompt, steps, several rows at once, and a step


def heads_of(x_BHTD, rank, ranks, real):
    """A rank's heads, in whole groups; zero heads where the real ones do not divide."""
    each = -(-real // ranks)
    times = x_BHTD.shape[1] // real
    padded = torch.zeros(BATCH, each * ranks * times, *x_BHTD.shape[2:])
    padded[:, : x_BHTD.shape[1]] = x_BHTD
    return padded[:, rank * each * times : (rank + 1) * each * times]


def attended(model, method, artifacts, rank, ranks, groups):
    """Outputs [B, H, T, D] of each call and layer, token numbers held, and the ledger's sums, on one rank."""
    dice = torch.Generator().manual_seed(5)
    outs, held, before = [], [], 0
    with bind.bind(model, method, artifacts=artifacts, shard=Shard(rank, ranks, groups)) as binding:
        cache, kind = binding.cache(), method.inserts(model.config)
        binding.first = torch.zeros(BATCH, dtype=torch.long)
        for new in CALLS:
            marks, binding.shared = None, {}  # as before each pass of a model
            if kind is not None:
                marks = kind.plan(binding.first + before, binding.first + before + new)[1]
            binding.feed = Feed() if kind is None else Feed(kind, new, marks)
            rows = new + (0 if marks is None else marks.shape[1])
            before += new
            for layer in cache.layers:
                q, k, v = (
                    heads_of(torch.randn(BATCH, n, rows, DIM, generator=dice) * 2, rank, ranks, groups)
                    for n in (groups * GROUP, groups, groups)
                )
                given = layer.update(k, v)
                out, _ = bind.attention(SimpleNamespace(), q, *given, None)
                outs.append(out.transpose(1, 2))
                memory = layer.memory
                held.append(memory.numbers_BNS(BATCH).expand(-1, k.shape[1] * memory.copies, -1))
        return outs, held, binding.ledger.sums()


def joined(parts, many):
    """Both ranks' real heads side by side; heads that hold fewer rows begin with holes."""
    wide = max(p.shape[2] for p in parts)
    even = [pad(p, (0, 0) * (p.ndim - 3) + (wide - p.shape[2], 0), value=-1) for p in parts]
    return torch.cat(even, 1)[:, :many]


@pytest.mark.parametrize("groups", [4, 3])
@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_heads_do_not_know_their_rank(name, args, groups, basis):
    """A head whose kept rows or output depend on who sits beside it would make results depend on the number of GPUs.

    Three heads do not divide: a zero head pads them, other kernels take the products, and outputs differ in rounding.
    """
    model = make_model(num_attention_heads=groups * GROUP, num_key_value_heads=groups, hidden_size=groups * GROUP * DIM)
    method, files = make_method(name, args), basis(groups, queries=groups * GROUP)
    whole = attended(model, method, files, 0, 1, groups)
    try:
        halves = [attended(model, method, files, rank, 2, groups) for rank in range(2)]
    except ValueError as refused:
        if "run on 1 rank" not in str(refused):
            raise
        pytest.skip(f"asks for every head: {refused}")
    for one, *two in zip(whole[0], *(half[0] for half in halves), strict=True):
        close = {4: 0.0, 3: 1e-5}[groups]
        torch.testing.assert_close(joined(two, groups * GROUP), one, atol=close, rtol=close)
    for one, *two in zip(whole[1], *(half[1] for half in halves), strict=True):
        assert torch.equal(joined(two, one.shape[1]), one)
    counted = sum(half[2] for half in halves)
    counted[:, :2, 0] = whole[2][:, :2, 0]  # every rank sees the same tokens
    assert len(counted) == LAYERS
    torch.testing.assert_close(counted, whole[2], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "args"),
    [("adakv", {"keep": 0.5}), ("tova", {"keep": 0.5}), ("landmark", {"rows": 12, "chunk": 8, "choose": "row"})],
)
def test_budgets_over_all_heads_are_refused(name, args):
    """A budget that a rank spread over its own heads alone would be another method, and nobody would see it."""
    with pytest.raises(ValueError, match="over all 4 key/value heads of a layer, this rank holds 2: run on 1 rank"):
        attended(make_model(), make_method(name, args), {}, 0, 2, 4)
