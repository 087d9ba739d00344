"""Times operations, and nothing that was not verified just before in the same process.

On a GPU every call is captured into a CUDA graph, and timed with a cold L2 cache. Rows carry raw samples and ceilings.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from .baselines import Baseline, dense_baselines, versions
from .chain import chain_ms, length_of, room_of
from .clock import captured, copy_gb_s, empty_ms, percentiles, sample_ms
from .copied import held_against_copy
from .drawn import Source, drawn_from, looks_at_keys
from .op import Case, Inputs, Op, load_op
from .pipeline import STAGES, make_pipeline, pipeline_bytes, pipeline_flops
from .row import Row
from .tiling import Plan
from .verify import first_sequence, judge, large, with_plan

REPEATS = 100
# A baseline is another's code: it is checked for gross mistakes, and its error is in the row.
BASELINE_ERROR = 0.05
# Against float64 the eager twin errs by the rounding of its output and of a float32 sum.
EAGER_ERROR = 4.0


def bench(
    op: Op, case: Case, device: torch.device, twin: str = "", ceiling_gb_s: float = 0.0, plan: Plan | None = None
) -> dict[str, Any]:
    """Verify one case of an operation, then time it.

    Args:
        op: The operation.
        case: The shape.
        device: A CPU runs the eager twin only.
        twin: "fused" or "eager"; by default the one that the device runs in production.
        ceiling_gb_s: Copy bandwidth of the device; measured here if zero.
        plan: Another way to cut the work of the fused twin than its own, of operations that take one.

    Returns:
        A `Row` as a dictionary.

    Raises:
        ValueError: If the fused twin is asked for on a CPU: the interpreter's times mean nothing; if a plan is given
            for the eager twin.
    """
    twin = twin or ("fused" if device.type == "cuda" else "eager")
    if twin not in ("fused", "eager"):
        raise ValueError(f"expected twin 'fused' or 'eager', got {twin!r}")
    if twin == "fused" and device.type != "cuda":
        raise ValueError(f"expected a CUDA device to time a fused twin on, got {device}: an interpreter has no speed")
    if plan is not None and twin == "eager":
        raise ValueError(f"expected no plan for the eager twin, got {plan}")
    row = _blank(op.name, case, device, ceiling_gb_s or copy_gb_s(device))
    row = replace(row, twin=twin, bytes=op.bytes(case), flops=op.flops(case), plan=str(plan or ""))
    inputs = op.make(case, device, 0)
    if twin == "eager":
        return asdict(_timed(_checked_eager(row, op, case, inputs), lambda: op.eager(**inputs), device))
    arguments = with_plan(inputs, plan)
    row = _timed(_checked_fused(row, op, case, inputs, plan), lambda: op.fused(**arguments), device)
    return asdict(_in_chain(row, case, lambda one: op.fused(**with_plan(one, plan)), inputs, device))


def _blank(name: str, case: Case, device: torch.device, ceiling_gb_s: float) -> Row:
    named = f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
    return Row(name, case.name, device=named, versions=versions(), dtype=case.dtype, ceiling_gb_s=ceiling_gb_s)


def _checked_fused(row: Row, op: Op, case: Case, inputs: Inputs, plan: Plan | None) -> Row:
    verdict = judge(op, case, inputs, plan)
    status = "ok" if verdict.passed else "failed"
    return replace(
        row, status=status, reason=verdict.reason, error=verdict.fused_error, eager_error=verdict.eager_error
    )


def _checked_eager(row: Row, op: Op, case: Case, inputs: Inputs) -> Row:
    comparison = op.compare(inputs, op.eager(**op.fresh(inputs)), op.reference(inputs))
    eps = max(torch.finfo(case.torch_dtype).eps, 8 * torch.finfo(torch.float32).eps)
    good = comparison.error <= EAGER_ERROR * eps * comparison.scale
    reason = comparison.reason or ("" if good else f"error {comparison.error:.3g} against float64")
    return replace(row, status="failed" if reason else "ok", reason=reason, eager_error=comparison.error)


def _timed(row: Row, call: Callable[[], object], device: torch.device) -> Row:
    if row.status != "ok":
        return row
    on_gpu = device.type == "cuda"
    samples = sample_ms(captured(call) if on_gpu else call, device, REPEATS if on_gpu else 10)
    p10_ms, median_ms, p90_ms = percentiles(samples)
    achieved = row.bytes / median_ms / 1e6
    assert row.ceiling_gb_s, "the ceiling is measured before anything is timed"
    return replace(
        row,
        launch="cuda graph" if on_gpu else "direct",
        median_ms=median_ms,
        p10_ms=p10_ms,
        p90_ms=p90_ms,
        samples_ms=samples,
        achieved_gb_s=achieved,
        percent_of_ceiling=100 * achieved / row.ceiling_gb_s,
    )


def _in_chain(row: Row, case: Case, call: Callable[[Inputs], object], inputs: Inputs, device: torch.device) -> Row:
    """Launches of decoding are many in a row; those for many rows are not."""
    if row.median_ms is None or type(case) is not Case:
        return row
    length = length_of(inputs, row.bytes, room_of(device))
    if not length:
        return row
    assert row.ceiling_gb_s
    try:
        ms = chain_ms(call, inputs, length, device, REPEATS)
    except torch.OutOfMemoryError:  # the row, verified and timed alone, stays as it is
        return row
    finally:  # when the error, which holds the copies, is gone
        torch.cuda.empty_cache()
    return replace(row, chain_ms=ms, percent_in_chain=100 * row.bytes / ms / 1e6 / row.ceiling_gb_s)


def bench_baselines(case: Case, device: torch.device, ceiling_gb_s: float) -> Iterator[dict[str, Any]]:
    """Check and time every dense baseline on one case; one that cannot run here is a failed row.

    Args:
        case: Its rows must all be visible: the baselines know no interval.
        device: Where.
        ceiling_gb_s: Copy bandwidth of the device.

    Yields:
        `Row`s as dictionaries.

    Raises:
        ValueError: If the case has hidden rows.
    """
    if case.visible != "full":
        raise ValueError(f"expected a case with all rows visible, got {case.name!r}")
    op = load_op("dense_decode")
    inputs = op.make(case, device, 0)
    reference = op.reference(first_sequence(inputs) if large(inputs) else inputs)
    row = _blank(op.name, case, device, ceiling_gb_s)
    row = replace(row, bytes=op.bytes(case), flops=op.flops(case))
    for name, baseline in dense_baselines().items():
        yield asdict(_baseline_row(replace(row, baseline=name), baseline, inputs, reference, device))


def _baseline_row(row: Row, baseline: Baseline, inputs: Inputs, reference: torch.Tensor, device: torch.device) -> Row:
    try:
        call = baseline(inputs["q_BHD"], inputs["k_BGSD"], inputs["v_BGSD"], inputs["scale"])
        error = float((call()[: len(reference)].to(reference.dtype) - reference).abs().max())
        # NaN compares false, and so fails.
        good = error <= BASELINE_ERROR * float(reference.abs().max())
        status, reason = ("ok", "") if good else ("failed", f"error {error:.3g} against float64")
        return _timed(replace(row, error=error, status=status, reason=reason), call, device)
    except RuntimeError as failure:
        return replace(row, status="failed", reason=str(failure).splitlines()[0])


def bench_pipeline(
    case: Case,
    device: torch.device,
    ceiling_gb_s: float,
    dense: Iterable[dict[str, Any]],
    name: str = "loki_pipeline",
) -> dict[str, Any]:
    """Verify each stage of a pipeline, then time the whole.

    Args:
        case: The shape.
        device: A CUDA device.
        ceiling_gb_s: Copy bandwidth of the device.
        dense: Rows of dense kernels on the same case; the fastest is what the pipeline is held against.
        name: "loki_pipeline", or "loki_theta_pipeline", whose thresholds were found beforehand.

    Returns:
        A `Row` as a dictionary.

    Raises:
        ValueError: If the device is a CPU.
    """
    _check_cuda(device)
    pipeline = make_pipeline(case, device, 0, name)
    verdicts = list(pipeline.verdicts())
    reason = "; ".join(f"{verdict.op}: {verdict.reason}" for verdict in verdicts if not verdict.passed)
    row = _blank(name, case, device, ceiling_gb_s)
    row = replace(row, twin="fused", bytes=pipeline_bytes(case, name), flops=pipeline_flops(case, name), reason=reason)
    row = replace(row, status="failed" if reason else "ok", error=verdicts[-1].fused_error)
    row = _timed(replace(row, eager_error=verdicts[-1].eager_error), pipeline.run, device)
    return asdict(_held_against(row, dense))


def _held_against(row: Row, dense: Iterable[dict[str, Any]]) -> Row:
    timed = [other for other in dense if other["status"] == "ok"]
    if row.median_ms is None or not timed:
        return row
    fastest = min(timed, key=lambda other: float(other["median_ms"]))
    return replace(row, against=fastest["baseline"] or fastest["twin"], speed_up=fastest["median_ms"] / row.median_ms)


def _check_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(f"expected a CUDA device to time a pipeline on, got {device}")


def rows(op_names: Iterable[str], device: torch.device, cases: Sequence[Case] = ()) -> Iterator[dict[str, Any]]:
    """Bench operations on all their cases: those for timing on a GPU, those for tests on a CPU.

    Args:
        op_names: Names of operations, and of the pipelines "loki_pipeline" and "loki_theta_pipeline".
        device: Where.
        cases: What to time instead of the operations' own cases.

    Yields:
        `Row`s as dictionaries, as they are measured.

    Raises:
        ValueError: If a name is unknown, the pipeline is asked for on a CPU, or cases are given for an operation that
            is none of decoding.
    """
    names = list(op_names)
    ops = {name: load_op(name) for name in names if name not in STAGES}
    other = [name for name, op in ops.items() if cases and type(op.cases[0]) is not Case]
    if other:
        raise ValueError(f"expected operations of decoding for these shapes, got {', '.join(other)}")
    if set(STAGES) & set(names):
        _check_cuda(device)
    ceiling_gb_s, empty = copy_gb_s(device), empty_ms(device)
    for row in _measured(names, ops, device, ceiling_gb_s, cases):
        yield row | {"empty_ms": empty} | held_against_copy(row, device)


def _measured(
    names: list[str], ops: dict[str, Op], device: torch.device, ceiling_gb_s: float, cases: Sequence[Case]
) -> Iterator[dict[str, Any]]:
    purpose = "time" if device.type == "cuda" else "test"
    for name, op in ops.items():
        if (name, device.type) != ("dense_decode", "cuda"):
            for case in cases or (case for case in op.cases if case.purpose == purpose):
                yield from _fitting(name, case, device, partial(_alone, bench, op, case, device, "", ceiling_gb_s))
    if device.type == "cuda" and ({"dense_decode"} | set(STAGES)) & set(names):
        for case in cases or (case for case in load_op("dense_decode").cases if case.purpose == "time"):
            yield from _dense_and_pipeline(names, case, device, ceiling_gb_s)


def rows_of_keys(
    name: str, source: Source, op_names: Iterable[str], device: torch.device, cases: Sequence[Case] = ()
) -> Iterator[dict[str, Any]]:
    """Bench on keys of a source instead of normal numbers; operations that do not look at keys are left out.

    Args:
        name: Of the source; rows and their cases have it.
        source: Draws the caches.
        op_names: As `rows` takes them.
        device: Where.
        cases: As `rows` takes them.

    Yields:
        `Row`s as dictionaries, as they are measured.

    Raises:
        ValueError: As `rows`, or if none of the operations looks at keys.
    """
    looking = [one for one in op_names if one in STAGES or looks_at_keys(load_op(one))]
    if not looking:
        raise ValueError(f"expected an operation that looks at keys, to time it on those of {name!r}")
    with drawn_from(source):
        for row in rows(looking, device, cases):
            yield row | {"keys": name, "case": f"{row['case']}_keys-{name}"}


def _dense_and_pipeline(
    names: list[str], case: Case, device: torch.device, ceiling_gb_s: float
) -> Iterator[dict[str, Any]]:
    op = load_op("dense_decode")
    dense = _fitting(op.name, case, device, partial(_alone, bench, op, case, device, "", ceiling_gb_s))
    dense += _fitting(op.name, case, device, partial(bench_baselines, case, device, ceiling_gb_s))
    yield from dense
    for name in (name for name in STAGES if name in names):
        work = partial(_alone, bench_pipeline, case, device, ceiling_gb_s, dense, name)
        yield from _fitting(name, case, device, work)


def _alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> list[dict[str, Any]]:
    return [work(*arguments)]


def _fitting(
    name: str, case: Case, device: torch.device, work: Callable[[], Iterable[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What was measured; a case that does not fit is a row too, and says how many bytes were asked for."""
    try:
        return list(work())
    except torch.OutOfMemoryError as error:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return [asdict(replace(_blank(name, case, device, 0.0), status="oom", reason=str(error).splitlines()[0]))]
