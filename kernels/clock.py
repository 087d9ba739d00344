"""Time on the device: events, a warm-up, a cold cache, and raw samples."""

import time
from collections.abc import Callable
from statistics import median, quantiles

import torch

# More than any L2 cache: writing it between repeats leaves nothing of the inputs there.
FLUSH_BYTES = 256 * 2**20
COPY_BYTES = 2 * 2**30
WARM_UP = 5
# After heavy work, such as a float64 reference, a GPU takes a while to come back to its clocks.
SETTLE_MS = 200.0
# Samples of one call take so long together, or are so few.
SAMPLES_MS, FEWEST = 600.0, 5


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """Capture the launches of a call into one CUDA graph; a host sync or a dynamic shape inside would fail.

    Args:
        call: Launches device work, the same each time.

    Returns:
        A function that replays it.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
            stream.synchronize()  # nor does a replay overlap the one before
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Callable[[], None] = graph.replay
    return replay


def sample_ms(
    call: Callable[[], object], device: torch.device, repeats: int, settle_ms: float = SETTLE_MS
) -> tuple[float, ...]:
    """Time a call several times; on a GPU less often where a call is so long that its spread is small.

    Args:
        call: What is timed.
        device: Where it runs: events and a cold L2 cache on CUDA, the host's clock on a CPU.
        repeats: The most samples.
        settle_ms: How long a GPU is called before that counts.

    Returns:
        Milliseconds of each repeat, in the order they were taken.
    """
    for _ in range(WARM_UP):
        call()
    return _on_cuda(call, device, repeats, settle_ms) if device.type == "cuda" else _on_cpu(call, repeats)


def _on_cuda(call: Callable[[], object], device: torch.device, repeats: int, settle_ms: float) -> tuple[float, ...]:
    flush = torch.ones(FLUSH_BYTES // 4, dtype=torch.int32, device=device)
    made = _settle(call, flush, device, settle_ms)
    repeats = min(repeats, max(FEWEST, int(made * SAMPLES_MS / settle_ms)))
    starts, ends = _events(repeats), _events(repeats)
    for start, end in zip(starts, ends, strict=True):
        # Read, not written: what a write leaves in the cache would be written back inside the time of the call.
        flush.amax()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return tuple(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True))


def _settle(call: Callable[[], object], flush: torch.Tensor, device: torch.device, settle_ms: float) -> int:
    """Call until the clocks are up; how often that was."""
    torch.cuda.synchronize(device)
    until, made = time.perf_counter() + settle_ms / 1e3, 0
    while time.perf_counter() < until:
        flush.amax()
        call()
        torch.cuda.synchronize(device)
        made += 1
    return made


def _events(count: int) -> list[torch.cuda.Event]:
    return [torch.cuda.Event(enable_timing=True) for _ in range(count)]  # type: ignore[no-untyped-call]


def _on_cpu(call: Callable[[], object], repeats: int) -> tuple[float, ...]:
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        samples.append(1e3 * (time.perf_counter() - start))
    return tuple(samples)


def refuse_other_gpu(name: str, device: torch.device) -> None:
    """A time of another GPU than the one that was meant is none.

    Args:
        name: Part of the name that the GPU must have; anything will do if empty.
        device: Where something is to be timed.

    Raises:
        ValueError: If the device has another name, or is none.
    """
    found = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    if name and name not in found:
        raise ValueError(f"times were asked for of {name!r}, this is {found}: nothing was timed")


def percentiles(samples: tuple[float, ...]) -> tuple[float, float, float]:
    """Summarise samples.

    Args:
        samples: At least two.

    Returns:
        The 10th percentile, the median and the 90th percentile.
    """
    tenths = quantiles(samples, n=10, method="inclusive")
    return tenths[0], median(samples), tenths[-1]


def copy_gb_s(device: torch.device, repeats: int = 20) -> float:
    """Measure the ceiling of all memory-bound work: a copy from the device to itself.

    Args:
        device: Which device.
        repeats: How many copies.

    Returns:
        Bytes read plus bytes written, in GB/s, from the median copy.
    """
    size = COPY_BYTES if device.type == "cuda" else COPY_BYTES // 32
    # Zeros could be copied faster than data.
    source = torch.randint(-128, 127, (size,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median(sample_ms(lambda: target.copy_(source), device, repeats)) / 1e6


def empty_ms(device: torch.device, repeats: int = 50) -> float:
    """Time one launch that does next to nothing, as `sample_ms` times operations: what is left is the measure itself.

    Args:
        device: CUDA: captured into a graph, with a cold cache; CPU: a call of torch.
        repeats: Samples, of which the median counts.

    Returns:
        Milliseconds.
    """
    one = torch.zeros(1, device=device)

    def call() -> object:
        return one.add_(0)

    return median(sample_ms(captured(call) if device.type == "cuda" else call, device, repeats))
