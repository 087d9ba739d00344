"""On a GPU the same methods run through the fused kernels; the CPU's eager twins say what must come out."""

import pytest
import torch
from conftest_models import make_method, make_model, run_rows, tokens

from lacuna.models.ledger import summary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CASES = [
    ("full", {}),
    ("topk", {"keep": 0.25}),
    ("topk", {"keep": 0.25, "heads": "query"}),
    ("loki", {"keep": 0.25, "d": 0.5}),
    ("streaming_llm", {"sinks": 2, "rows": 16}),
    ("streaming_llm", {"sinks": 2, "rows": 16, "positions": "text"}),
    ("snapkv", {"keep": 0.5, "window": 5}),
    ("snapkv", {"keep": 0.5, "window": 5, "heads": "query"}),
    ("pyramidkv", {"keep": 0.5, "window": 5}),
    ("adakv", {"keep": 0.5, "window": 5}),
    ("h2o", {"keep": 0.5}),
    ("tova", {"keep": 0.5}),
    ("l2norm", {"keep": 0.5, "skip": 0}),
    ("keydiff", {"keep": 0.5}),
    ("quest", {"keep": 0.5, "page": 4, "skip": 0}),
    ("sparq", {"keep": 0.25}),
    ("pca_attn", {"d": 0.5}),
    ("top_theta", {"rows": 4, "sdc": "exact", "vmc": "mean"}),
    ("loki_theta", {"keep": 0.25, "d": 0.5}),
    ("ntk", {"prefix": 16}),
]


@pytest.mark.parametrize(("groups", "at_once"), [(1, False), (2, False), (4, False), (2, True)])
@pytest.mark.parametrize(("name", "args"), CASES)
def test_fused_path_equals_eager_path(name, args, groups, at_once, basis):
    """The kernel that is timed must be the method that is scored: same logits, same rows, with left padding too."""
    model, ids = make_model(num_key_value_heads=groups, head_dim=64), tokens(3, 70)
    mask = (torch.arange(70) >= torch.tensor([0, 5, 11])[:, None]).long()
    method, files = make_method(name, args), basis(heads=groups, dim=64)
    want, counted = run_rows(model, method, ids, files, 40, False, mask=mask)
    got, ledger = run_rows(model.cuda(), method, ids.cuda(), files, 40, at_once, mask=mask.cuda())
    torch.testing.assert_close(got.cpu(), want, atol=2e-3, rtol=1e-3)
    ours, theirs = (summary([x.sums()])["decode"] for x in (ledger, counted))
    assert ours == pytest.approx(theirs)
