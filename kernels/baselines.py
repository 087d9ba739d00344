"""Dense decode attention as others do it. The fastest of these decides every headline.

What a library needs beforehand, such as a cache in its own layout or a plan for these shapes, is made before the call
that is timed.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .paged import flashinfer_paged

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
Baseline = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], Callable[[], torch.Tensor]]


def sdpa(
    backend: SDPBackend, q_BHD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, scale: float
) -> torch.Tensor:
    """Run one backend of PyTorch as most code calls it.

    Args:
        backend: The only one allowed.
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        scale: Factor of the scores.

    Returns:
        (B, H, D).

    Raises:
        RuntimeError: If the backend cannot run these shapes here.
    """
    grouped = q_BHD.shape[1] != k_BGSD.shape[1]
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(q_BHD[:, :, None], k_BGSD, v_BGSD, scale=scale, enable_gqa=grouped)
    return out[:, :, 0]


def sdpa_grouped(
    backend: SDPBackend, q_BHD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, scale: float
) -> torch.Tensor:
    """Run one backend of PyTorch with the query heads of a group as rows of one query, which saves reads.

    Args:
        backend: The only one allowed.
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        scale: Factor of the scores.

    Returns:
        (B, H, D).

    Raises:
        RuntimeError: If the backend cannot run these shapes here.
    """
    batch, heads, head_dim = q_BHD.shape
    q_BGJD = q_BHD.view(batch, k_BGSD.shape[1], -1, head_dim)
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(q_BGJD, k_BGSD, v_BGSD, scale=scale)
    return out.reshape(batch, heads, head_dim)


def naive(q_BHD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, scale: float) -> torch.Tensor:
    """Repeat K and V for each query head, multiply, softmax in float32, multiply: what model code does unfused.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        scale: Factor of the scores.

    Returns:
        (B, H, D).
    """
    group = q_BHD.shape[1] // k_BGSD.shape[1]
    k_BHSD, v_BHSD = k_BGSD, v_BGSD
    if group > 1:
        k_BHSD, v_BHSD = k_BGSD.repeat_interleave(group, 1), v_BGSD.repeat_interleave(group, 1)
    score_BH1S = (q_BHD[:, :, None] @ k_BHSD.mT) * scale
    share_BH1S = score_BH1S.softmax(-1, dtype=torch.float32).to(q_BHD.dtype)
    return (share_BH1S @ v_BHSD)[:, :, 0]


def dense_baselines() -> dict[str, Baseline]:
    """Name the dense kernels that ours is held against.

    Returns:
        Functions of (q_BHD, k_BGSD, v_BGSD, scale) that give the call to time, by the name they have in a result row.
    """
    backends = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "math": SDPBackend.MATH,
    }
    plain: dict[str, Attention] = {f"sdpa_{name}": partial(sdpa, backend) for name, backend in backends.items()}
    grouped: dict[str, Attention] = {
        f"sdpa_{name}_grouped": partial(sdpa_grouped, backend) for name, backend in backends.items() if name != "math"
    }
    ready = plain | grouped | {"naive": naive}
    return {name: partial(partial, attention) for name, attention in ready.items()} | {"flashinfer": flashinfer_paged}


def versions() -> str:
    """Name the versions that the baselines come from.

    Returns:
        The versions of torch, CUDA and cuDNN, and of FlashInfer where it is installed.
    """
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    try:
        flashinfer = f", FlashInfer {version('flashinfer-python')}"
    except PackageNotFoundError:
        flashinfer = ""
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}{flashinfer}"
