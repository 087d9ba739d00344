"""Verification: the fused twin may err at most twice as much as the eager twin of the same dtype.

Both are held against float64. All memory that the fused twin allocates is poisoned first, so an element that is
never written shows as NaN.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.utils import deterministic

from .interpreter import interpreted
from .op import Case, Comparison, Inputs, Op, load_op
from .tiling import Plan

# Above, the first sequence alone is held against float64: four times the bytes would not fit beside the cache.
WHOLE_BYTES = 20 * 2**30
# Of what a twin writes there are as many more: for each twin, and for the comparison.
COPIES = 3
# Where both twins are nearly exact, the order of a float32 sum still differs, and tensor cores truncate.
SUM_EPS = 32 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Verdict:
    """What verification found.

    Attributes:
        op: Name of the operation.
        case: Name of the case.
        device: Type of the device.
        dtype: Name of the dtype.
        fused_error: Largest error of the fused twin against float64.
        eager_error: Largest error of the eager twin against float64.
        passed: Whether the first is at most twice the second, plus the rounding of a float32 sum.
        reason: Why not; empty if passed.
    """

    op: str
    case: str
    device: str
    dtype: str
    fused_error: float
    eager_error: float
    passed: bool
    reason: str


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill all newly allocated memory with NaN or the largest integer, scratch memory too.

    Yields:
        Nothing.
    """
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def verify(op: Op, case: Case, device: torch.device, dtype: str = "", seed: int = 0) -> Verdict:
    """Run both twins of an operation on a case and hold them against float64.

    Args:
        op: The operation.
        case: The shape.
        device: A CUDA device, or a CPU under Triton's interpreter.
        dtype: Name of a dtype; the case's own if empty.
        seed: Of the inputs.

    Returns:
        The verdict.

    Raises:
        ValueError: If the device cannot run the fused twin.
    """
    check_device(device)
    case = replace(case, dtype=dtype or case.dtype)
    return judge(op, case, op.make(case, device, seed))


def judge(op: Op, case: Case, inputs: Inputs, plan: Plan | None = None) -> Verdict:
    """Verify on inputs that exist already.

    Args:
        op: The operation.
        case: Where the inputs came from.
        inputs: The arguments of the twins.
        plan: How the fused twin cuts its work, of operations that take one; its own choice if absent.

    Returns:
        The verdict.
    """
    output = run_poisoned(op, with_plan(inputs, plan))
    if not large(inputs, op.writes):
        return weigh(op, case.name, inputs, output)
    verdict = weigh(op, case.name, first_sequence(inputs), first_of(output))
    if verdict.passed and has_nan(output):  # memory was poisoned
        return replace(verdict, passed=False, reason="fused: NaN beyond the first sequence")
    return verdict


def has_nan(value: Any) -> bool:
    """Look for NaN.

    Args:
        value: A tensor, or a tuple of such.

    Returns:
        Whether there is one.
    """
    if torch.is_tensor(value):
        return value.is_floating_point() and bool(value.isnan().any())
    return isinstance(value, tuple) and any(map(has_nan, value))


def large(inputs: Inputs, writes: Iterable[str] = ()) -> bool:
    """Tell whether float64 copies of the inputs are too much.

    Args:
        inputs: The arguments of the twins.
        writes: Those that a twin writes, and that each twin, the reference and the comparison therefore copy.

    Returns:
        Whether only the first sequence is verified.
    """
    sizes = {name: value.nbytes for name, value in inputs.items() if torch.is_tensor(value)}
    return sum(sizes.values()) + COPIES * sum(sizes[name] for name in writes) > WHOLE_BYTES


def first_sequence(inputs: Inputs) -> Inputs:
    """Take the part of each argument that is of the first sequence.

    Args:
        inputs: The arguments of the twins; the shape of one that has a part for each sequence is at the end of its
            name, and begins with B.

    Returns:
        The same for a batch of one.
    """
    return {
        name: first_of(value) if name.rpartition("_")[2].startswith("B") else value for name, value in inputs.items()
    }


def first_of(value: Any) -> Any:
    """Take the first sequence of a tensor, or of each of several.

    Args:
        value: A tensor whose first dim is B, or a tuple of such; anything else is given back.

    Returns:
        A view.
    """
    if torch.is_tensor(value):
        return value[:1] if value.ndim else value
    return tuple(map(first_of, value)) if isinstance(value, tuple) else value


def weigh(op: Op, name: str, inputs: Inputs, output: Any) -> Verdict:
    """Judge an output that exists already.

    Args:
        op: The operation.
        name: Of the case.
        inputs: The arguments of the twins.
        output: What the fused twin made of them, or the eager one, which then must not err more than its dtype rounds.

    Returns:
        The verdict.
    """
    reference = op.reference(inputs)
    eager = op.compare(inputs, op.eager(**op.fresh(inputs)), reference)
    fused = op.compare(inputs, output, reference)
    reason = _complaint(fused, eager)
    tensors = [value for value in inputs.values() if torch.is_tensor(value)]
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    return Verdict(op.name, name, tensors[0].device.type, dtype, fused.error, eager.error, not reason, reason)


def run_poisoned(op: Op, inputs: Inputs) -> Any:
    """Run the fused twin in poisoned memory.

    Args:
        op: The operation.
        inputs: The arguments of the twins.

    Returns:
        What the fused twin returns.
    """
    inputs = op.fresh(inputs)
    with poisoned_memory():
        return op.fused(**inputs)


def with_plan(inputs: Inputs, plan: Plan | None) -> Inputs:
    """Add a plan to the arguments of a fused twin.

    Args:
        inputs: The arguments of the twins.
        plan: The plan, or nothing.

    Returns:
        The arguments of the fused twin.
    """
    return inputs if plan is None else inputs | {"plan": plan}


def check_device(device: torch.device) -> None:
    """Refuse a device that cannot run a fused twin.

    Args:
        device: The device.

    Raises:
        ValueError: If it is a CPU and Triton's interpreter is off.
    """
    if device.type == "cpu" and not interpreted():
        raise ValueError("expected a CUDA device, or TRITON_INTERPRET=1 in the environment, got device 'cpu'")


def _complaint(fused: Comparison, eager: Comparison) -> str:
    if fused.reason or eager.reason:
        return "; ".join(
            f"{twin}: {reason}" for twin, reason in (("fused", fused.reason), ("eager", eager.reason)) if reason
        )
    bound = 2 * eager.error + SUM_EPS * fused.scale
    if math.isfinite(fused.error) and fused.error <= bound:
        return ""
    return f"fused: error {fused.error:.3g} above {bound:.3g}, eager has {eager.error:.3g}"


def verify_all(names: Iterable[str], device: torch.device) -> Iterator[dict[str, Any]]:
    """Verify every test case of some operations in each dtype.

    Args:
        names: Of operations.
        device: A CUDA device, or a CPU under Triton's interpreter.

    Yields:
        The fields of each verdict.

    Raises:
        ValueError: If the device cannot run the fused twins, or there is no operation of a name.
    """
    for op in map(load_op, names):
        for case in (case for case in op.cases if case.purpose == "test"):
            for dtype in ("float32", "bfloat16", "float16"):
                yield asdict(verify(op, case, device, dtype))
