"""One line of what the bench measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of results; times are empty if the verification failed or the call raised.

    Attributes:
        op: Name of the operation or pipeline.
        case: Name of the case.
        twin: "fused" or "eager"; empty for a baseline.
        baseline: Name of the baseline; empty for a twin.
        keys: Whose keys: "random" for normal numbers, or the name of a model.
        status: "ok", "failed" or "oom".
        reason: Why it failed.
        device: Type and name of the device.
        versions: Of the libraries.
        dtype: Of the cache.
        plan: How the work was cut, if not as the fused twin does by itself.
        launch: "cuda graph" or "direct".
        error: Largest error against float64.
        eager_error: The same of the eager twin.
        median_ms: Of the samples.
        p10_ms: Of the samples.
        p90_ms: Of the samples.
        samples_ms: All of them, in order.
        bytes: Fewest bytes that must move.
        flops: Floating-point operations.
        achieved_gb_s: Bytes over the median.
        ceiling_gb_s: Copy bandwidth of the device, measured first.
        percent_of_ceiling: Of the two.
        empty_ms: Median of one launch that does next to nothing, in the same process and measure: what a time holds
            beside its bytes, at least.
        copy_ms: Median of a kernel that moves as many bytes, half of them written, in the same process and measure.
        percent_of_copy: That over the median.
        chain_ms: Of a fused twin: one launch of several in a CUDA graph, each over data of its own; nothing where
            copies do not fit or all together are no more than what L2 keeps.
        percent_in_chain: Bytes over that time, against the copy bandwidth.
        against: What a pipeline is compared with: the fastest dense kernel of the same case.
        speed_up: Time of that over the median.
        break_even_rows: Of a pipeline on a grid: the rows from which on every longer cache of its batch and budget
            gains; nothing where the longest does not, or where no grid was timed.
    """

    op: str
    case: str
    twin: str = ""
    baseline: str = ""
    keys: str = "random"
    status: str = "ok"
    reason: str = ""
    device: str = ""
    versions: str = ""
    dtype: str = ""
    plan: str = ""
    launch: str = ""
    error: float | None = None
    eager_error: float | None = None
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    samples_ms: tuple[float, ...] = ()
    bytes: int = 0
    flops: int = 0
    achieved_gb_s: float | None = None
    ceiling_gb_s: float | None = None
    percent_of_ceiling: float | None = None
    empty_ms: float | None = None
    copy_ms: float | None = None
    percent_of_copy: float | None = None
    chain_ms: float | None = None
    percent_in_chain: float | None = None
    against: str = ""
    speed_up: float | None = None
    break_even_rows: int | None = None
