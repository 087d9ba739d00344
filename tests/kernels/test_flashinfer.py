"""FlashInfer as a baseline: what it is given, and what a row says where it is missing or fails."""

import sys
from types import SimpleNamespace

import pytest
import torch

from lacuna.kernels.bench import bench_baselines
from lacuna.kernels.op import Case, load_op
from lacuna.kernels.paged import PAGE_ROWS, flashinfer_paged

CPU = torch.device("cpu")
CASES = [
    Case("odd", 3, 8, 2, 75, head_dim=64, dtype="float32", visible="full"),
    Case("even", 2, 2, 2, 64, head_dim=96, dtype="float32", visible="full"),
]


class Wrapper:
    """Stands in for FlashInfer's: attends page by page, as its documentation says, with nothing but what it is told."""

    def __init__(self, workspace, layout, **buffers):
        assert workspace.dtype == torch.uint8
        assert layout == "HND"
        self.cores = buffers["use_tensor_cores"]
        assert buffers["use_cuda_graph"]

    def plan(self, first, index, last, heads, groups, dim, page_rows, *, q_data_type, kv_data_type, sm_scale):
        """Remember what is told."""
        assert q_data_type == kv_data_type == torch.float32
        self.told = first.tolist(), index.tolist(), last.tolist(), heads // groups, dim, page_rows, sm_scale

    def run(self, q_BHD, pages):
        """Attend, each text to the rows of its pages."""
        first, index, last, group, dim, page_rows, scale = self.told
        out = torch.empty_like(q_BHD)
        for text in range(len(last)):
            mine = index[first[text] : first[text + 1]]
            k, v = (torch.cat(list(part[mine]), 1) for part in pages)  # [G, rows, D]
            rows = (len(mine) - 1) * page_rows + last[text]
            k, v = (part[:, :rows].repeat_interleave(group, 0) for part in (k, v))
            assert k.shape[-1] == dim
            weights = ((k @ q_BHD[text, :, :, None])[..., 0] * scale).softmax(-1)
            out[text] = (weights[:, None] @ v)[:, 0]
        return out


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pages_hold_the_cache(case, monkeypatch):
    """A baseline would be beaten on other rows than ours reads, or with a page of them missing."""
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=Wrapper))
    op = load_op("dense_decode")
    inputs = op.make(case, CPU, 0)
    call = flashinfer_paged(*(inputs[name] for name in ("q_BHD", "k_BGSD", "v_BGSD", "scale")))
    torch.testing.assert_close(call(), op.eager(**inputs), rtol=1e-5, atol=1e-5)
    rows = {row["baseline"]: row for row in bench_baselines(case, CPU, 10.0)}
    assert rows["flashinfer"]["status"] == "ok"
    assert case.rows % PAGE_ROWS == {"odd": 11, "even": 0}[case.name]


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (None, "FlashInfer cannot run here: import of flashinfer halted"),
        (SimpleNamespace(), "no attribute 'BatchDecodeWithPagedKVCacheWrapper'"),
        (SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=lambda *_, **__: 1 / 0), "division by zero"),
    ],
)
def test_where_it_is_missing_or_fails_its_row_says_why(module, told, monkeypatch):
    """A missing baseline would end the bench, or leave a table that looks complete."""
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    row = next(row for row in bench_baselines(CASES[0], CPU, 10.0) if row["baseline"] == "flashinfer")
    assert (row["status"], row["median_ms"]) == ("failed", None)
    assert told in row["reason"]
