"""A paged cache: sequences whose rows lie in pages of one pool, read through an index.

Shape legend: B batch, H query heads, G KV heads, S rows of a sequence, D head dim, P rows of the pool, L rows of a page.
"""

import pytest
import torch

from lacuna.kernels.op import load_op
from lacuna.kernels.verify import poisoned_memory


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_gathering_through_a_table_of_pages_is_dense_attention(group, twin, device):
    """Broken: a cache in pages must be copied together to be attended, or pages of another sequence are read."""
    batch, kv_heads, dim, length, pages = 3, 2, 64, 16, 5
    generator = torch.Generator().manual_seed(group)
    q_BHD = torch.randn(batch, kv_heads * group, dim, generator=generator).to(device)
    k_GPD, v_GPD = (torch.randn(kv_heads, batch * pages * length, dim, generator=generator).to(device) for _ in "kv")
    table = torch.randperm(batch * pages, generator=generator).view(batch, pages)
    rows_BS = (table[..., None] * length + torch.arange(length)).flatten(1).to(device)
    count_B = torch.tensor([80, 33, 1], dtype=torch.int32, device=device)
    index_BGS = rows_BS[:, None].expand(-1, kv_heads, -1).int()
    pools = [pool[None].expand(batch, -1, -1, -1) for pool in (k_GPD, v_GPD)]
    count_BG = count_B[:, None].expand(-1, kv_heads).contiguous()
    with poisoned_memory():
        out_BHD = getattr(load_op("gather_decode"), twin)(q_BHD, *pools, index_BGS, count_BG, 0.125)
    for b in range(batch):
        rows = rows_BS[b, : int(count_B[b])]
        alone = [pool[None, :, rows].contiguous() for pool in (k_GPD, v_GPD)]
        bounds = torch.zeros_like(count_B[:1]), count_B[b : b + 1]
        want = load_op("dense_decode").eager(q_BHD[b : b + 1], *alone, *bounds, 0.125)
        torch.testing.assert_close(out_BHD[b : b + 1], want, atol=1e-5, rtol=1e-4)
