"""What an operation is: a readable twin, a fast twin, and the cases on which both are tested and timed.

Shape legend: B batch, H query heads, G KV heads, J = H / G query heads of one KV head, S rows in the cache,
D head dim, R low-rank dims, N row sets (G or H), K kept rows.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Inputs = dict[str, Any]
Reduce = Literal["max", "sum", "none"]
# Of memory that an operation reads: whether a launch that may still run wrote it, or none has for a while.
Age = Literal["new", "settled"]
Watch = Callable[["Op", tuple[Any, ...], Callable[..., Any]], Any]
_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Case:
    """One shape on which an operation is tested or timed.

    Attributes:
        name: What the case is called in a result row.
        batch: B.
        q_heads: H.
        kv_heads: G.
        rows: S.
        head_dim: D.
        low_dims: R, of the operations that score with some columns only.
        kept: K, of the operations that choose rows.
        reduce: How the scores of one group are reduced; "none" gives each query head its own set of rows.
        dtype: Name of the dtype of queries, keys and values.
        visible: "full" shows each sequence all S rows; "ragged" draws an interval for each (one of them empty).
        purpose: "test" cases are small enough for Triton's interpreter; "time" cases fill a GPU; "compile" cases say
            for which shapes a test compiles the kernels of an operation that the usual ones do not fit.
    """

    name: str
    batch: int
    q_heads: int
    kv_heads: int
    rows: int
    head_dim: int = 128
    low_dims: int = 32
    kept: int = 0
    reduce: Reduce = "max"
    dtype: str = "bfloat16"
    visible: Literal["full", "ragged"] = "ragged"
    purpose: Literal["test", "time", "compile"] = "test"

    def __post_init__(self) -> None:
        """Refuse what no kernel could run.

        Raises:
            ValueError: If the query heads do not divide into the KV heads, or the dtype is not known.
        """
        if self.q_heads % self.kv_heads:
            raise ValueError(f"expected q_heads divisible by kv_heads, got {self.q_heads} and {self.kv_heads}")
        if self.dtype not in DTYPES:
            raise ValueError(f"expected a dtype among {sorted(DTYPES)}, got {self.dtype!r}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return DTYPES[self.dtype]

    @property
    def item_bytes(self) -> int:
        """Bytes of one element of the cache."""
        return self.torch_dtype.itemsize

    @property
    def sets(self) -> int:
        """N: the sets of rows that are scored or chosen for one sequence."""
        return self.q_heads if self.reduce == "none" else self.kv_heads


@dataclass(frozen=True)
class Comparison:
    """How far an output is from the reference.

    Attributes:
        error: Largest absolute difference; infinite if the output is not even of the right form.
        scale: Largest finite magnitude in the reference.
        reason: What is wrong with the form; empty if nothing is.
    """

    error: float
    scale: float
    reason: str = ""


def compare_values(inputs: Inputs, output: torch.Tensor, reference: torch.Tensor) -> Comparison:  # noqa: ARG001
    """Compare two tensors of numbers; infinities must stand in the same places and NaN never passes.

    Args:
        inputs: Not used: values need nothing but the reference.
        output: Any shape.
        reference: The same shape, float64.

    Returns:
        The comparison.
    """
    output = output.to(reference.dtype)
    if output.shape != reference.shape:
        return Comparison(math.inf, 0.0, f"shape {tuple(output.shape)} instead of {tuple(reference.shape)}")
    if bool(output.isnan().any()):
        return Comparison(math.inf, 0.0, f"{int(output.isnan().sum())} elements are NaN")
    if not reference.numel():
        return Comparison(0.0, 0.0)
    finite = reference.isfinite()
    if not torch.equal(torch.where(finite, 0.0, output), torch.where(finite, 0.0, reference)):
        return Comparison(math.inf, 0.0, "infinities in other places than in the reference")
    difference = torch.where(finite, output - reference, 0.0).abs()
    scale = torch.where(finite, reference, 0.0).abs()
    return Comparison(float(difference.max()), float(scale.max()))


def compare_all(inputs: Inputs, output: tuple[torch.Tensor, ...], reference: tuple[torch.Tensor, ...]) -> Comparison:
    """Compare several tensors of numbers: the worst of them counts.

    Args:
        inputs: Not used.
        output: The tensors.
        reference: The same in float64.

    Returns:
        The comparison.
    """
    found = [compare_values(inputs, mine, theirs) for mine, theirs in zip(output, reference, strict=True)]
    return max(found, key=lambda one: (bool(one.reason), one.error))


@dataclass(frozen=True)
class Op:
    """An operation with two twins of one signature. The folder's name is the registry.

    Attributes:
        name: Name of the folder and of the function in both twins.
        version: Raised when results or timings of an older version no longer count.
        package: Import path of the folder, under which `fused.py` is found when it is first needed.
        eager: The readable twin: pure torch, at least float32 inside.
        make: (case, device, seed) -> inputs, in the order of the twins' arguments.
        bytes: Fewest bytes of device memory that a case must move.
        flops: Floating-point operations of a case.
        cases: What is tested and timed.
        compare: (inputs, output, reference) -> Comparison.
        writes: Names of the arguments that the twins write in place; they return them, too.
    """

    name: str
    version: str
    package: str
    eager: Callable[..., Any]
    make: Callable[[Case, torch.device, int], Inputs]
    bytes: Callable[[Case], int]
    flops: Callable[[Case], int]
    cases: tuple[Case, ...]
    compare: Callable[[Inputs, Any, Any], Comparison] = field(default=compare_values)
    writes: tuple[str, ...] = ()

    @property
    def fused(self) -> Callable[..., Any]:
        """The Triton twin, imported on first use: a machine without Triton can use the eager one.

        Raises:
            ImportError: If Triton is not installed.
        """
        twin: Callable[..., Any] = getattr(importlib.import_module(".fused", self.package), self.name)
        return twin

    def __call__(self, *arguments: Any) -> Any:
        """Run the fused twin on CUDA tensors and the eager twin elsewhere.

        Args:
            *arguments: The twins' arguments, by position; the first is a tensor.

        Returns:
            What the twins return.
        """
        twin = self.fused if arguments[0].is_cuda else self.eager
        watch = _WATCH.get()
        return twin(*arguments) if watch is None else watch(self, arguments, twin)

    def reference(self, inputs: Inputs) -> Any:
        """Run the eager twin in float64.

        Args:
            inputs: What `make` returned.

        Returns:
            What the eager twin returns, in float64.
        """
        return self.eager(**{name: _widest(value) for name, value in self.fresh(inputs).items()})

    def fresh(self, inputs: Inputs) -> Inputs:
        """Copy what a twin would write, so that another can be run on the same inputs.

        On a GPU all is in memory when this returns: a twin may read what is settled before others have ended.

        Args:
            inputs: What `make` returned.

        Returns:
            The same, with copies of the arguments that are written.
        """
        copies = {name: inputs[name].clone() for name in self.writes}
        for device in {copy.device for copy in copies.values() if copy.is_cuda}:
            torch.cuda.synchronize(device)
        return inputs | copies

    def case(self, name: str) -> Case:
        """Find a case by its name.

        Raises:
            ValueError: If there is none of that name.
        """
        found = [case for case in self.cases if case.name == name]
        if not found:
            raise ValueError(f"expected a case of {self.name} among {[c.name for c in self.cases]}, got {name!r}")
        return found[0]


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Hand every call of an operation to someone else for a while.

    Args:
        watch: (operation, arguments, twin that would run) -> what the call returns.

    Yields:
        Nothing.
    """
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


def _widest(value: Any) -> Any:
    floating = torch.is_tensor(value) and value.is_floating_point()
    return value.double() if floating else value


def load_op(name: str) -> Op:
    """Import the operation of that name.

    Args:
        name: Name of a folder beside this file.

    Returns:
        Its `OP`.

    Raises:
        ValueError: If there is no such folder.
    """
    package = __name__.rpartition(".")[0]
    try:
        module = importlib.import_module(f".{name}", package)
    except ModuleNotFoundError as error:
        if error.name != f"{package}.{name}":
            raise
        raise ValueError(f"expected the name of an operation, got {name!r}") from error
    if not hasattr(module, "OP"):
        raise ValueError(f"expected the name of an operation, got {name!r}, which is a module of this folder")
    op: Op = module.OP
    return op
