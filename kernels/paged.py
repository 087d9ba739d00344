"""FlashInfer's decode attention over pages, the kernel of many servers, as a baseline where it is installed.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, P pages, R rows of a page.
"""

from collections.abc import Callable
from typing import Any

import torch

PAGE_ROWS = 16
WORKSPACE_BYTES = 128 * 2**20
# From so many query heads of a KV head on, FlashInfer's own advice is its kernel on tensor cores.
TENSOR_CORE_GROUP = 4


def flashinfer_paged(
    q_BHD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, scale: float
) -> Callable[[], torch.Tensor]:
    """Lay the cache out in pages, plan as for a CUDA graph, and give the call.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        scale: Factor of the scores.

    Returns:
        A function that gives (B, H, D).

    Raises:
        RuntimeError: If FlashInfer is not installed, or cannot run these shapes here.
    """
    try:
        import flashinfer  # noqa: PLC0415 - a baseline that most machines lack

        return _planned(flashinfer.BatchDecodeWithPagedKVCacheWrapper, q_BHD, k_BGSD, v_BGSD, scale)
    except Exception as error:  # its parts are compiled when first used, and fail in many ways
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RuntimeError(f"FlashInfer cannot run here: {told}") from error


def _planned(
    wrapper_of: Any, q_BHD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, scale: float
) -> Callable[[], torch.Tensor]:
    (batch, heads, dim), (groups, rows) = q_BHD.shape, k_BGSD.shape[1:3]
    pages = tuple(_paged(part) for part in (k_BGSD, v_BGSD))
    each = -(-rows // PAGE_ROWS)
    place: dict[str, Any] = {"dtype": torch.int32, "device": q_BHD.device}
    first, index = torch.arange(batch + 1, **place) * each, torch.arange(batch * each, **place)
    last = torch.full((batch,), (rows - 1) % PAGE_ROWS + 1, **place)
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=q_BHD.device)
    wrapper: Any = wrapper_of(
        workspace, "HND", use_cuda_graph=True, use_tensor_cores=heads // groups >= TENSOR_CORE_GROUP,
        paged_kv_indptr_buffer=first.clone(), paged_kv_indices_buffer=index.clone(),
        paged_kv_last_page_len_buffer=last.clone(),
    )  # fmt: skip
    wrapper.plan(
        first, index, last, heads, groups, dim, PAGE_ROWS, q_data_type=q_BHD.dtype, kv_data_type=k_BGSD.dtype,
        sm_scale=scale,
    )  # fmt: skip

    def call() -> torch.Tensor:
        out_BHD: torch.Tensor = wrapper.run(q_BHD, pages)
        return out_BHD

    return call


def _paged(part_BGSD: torch.Tensor) -> torch.Tensor:
    """The rows of each sequence in pages of its own, (P, G, R, D); the last one is filled up with zeros."""
    batch, groups, rows, dim = part_BGSD.shape
    missing = -rows % PAGE_ROWS
    if missing:
        part_BGSD = torch.cat([part_BGSD, part_BGSD.new_zeros(batch, groups, missing, dim)], 2)
    return part_BGSD.unflatten(2, (-1, PAGE_ROWS)).transpose(1, 2).flatten(0, 1).contiguous()
