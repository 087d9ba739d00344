"""A site: where jobs run and what a job may ask for there. Ten lines of YAML, read and checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ..results.fields import Within, near, problem
from ..results.plugins import FOLDERS, ROOT, names

SLURM_ONLY = (
    "launcher",
    "partition",
    "account",
    "qos",
    "constraint",
    "mem_gb",
    "max_array",
    "array_parallelism",
    "ranks_per_node",
    "setup",
)
SLURM_DEFAULT_MAX_ARRAY = 1000


@dataclass(frozen=True)
class Site:
    """What `jobs/sites/NAME.yaml` says. None of this is part of a cell's key.

    Attributes:
        name: the file's name.
        executor: slurm (sbatch), local (processes here, one job after another) or debug (in this very process).
        launcher: how a job's ranks find each other: `srun --mpi=pmix`, `srun --mpi=pmi2`, or (torch) a rendezvous made
            of Slurm's own variables, without MPI.
        time_min: wall time of a job. A job whose time ends goes back into the queue and goes on where it was.
        signal_s: how long before its end a job is warned.
        cpus_per_rank: cores, and threads, of a rank.
        gpus_per_rank: GPUs of a rank, asked for only by cells of device cuda.
        mem_gb: memory on each node; None takes the partition's default.
        ranks_per_node: ranks that share a node; None puts all ranks of a job on one node.
        max_array: elements in one job array; None asks Slurm for its MaxArraySize.
        array_parallelism: elements of one array that run at a time.
        cells_per_job: most cells that share one load of the model.
        setup: lines of shell before srun.
        env: environment variables of the job.

    The fields in SLURM_ONLY are refused with other executors, which would ignore them.
    """

    name: str
    executor: Literal["slurm", "local", "debug"]
    launcher: Literal["pmix", "pmi2", "torch"] | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_min: Annotated[int, Within(1)] = 60
    signal_s: Annotated[int, Within(1)] = 90
    cpus_per_rank: Annotated[int, Within(1)] = 1
    gpus_per_rank: Annotated[int, Within(0)] = 0
    mem_gb: Annotated[float, Within(0, open_low=True)] | None = None
    ranks_per_node: Annotated[int, Within(1)] | None = None
    max_array: Annotated[int, Within(1)] | None = None
    array_parallelism: Annotated[int, Within(1)] | None = None
    cells_per_job: Annotated[int, Within(1)] = 32
    setup: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def cell_timeout_s(self) -> float:
        """A cell that needs longer than a fresh job can give would be put back for ever: it is a time-out instead."""
        return 0.8 * (self.time_min * 60 - self.signal_s)

    @property
    def environment(self) -> dict[str, str]:
        """The job's variables; threads are told, since not every cluster binds a rank to its cores."""
        return {"OMP_NUM_THREADS": str(self.cpus_per_rank), **self.env}

    @property
    def mpi(self) -> str:
        """What srun is told: without MPI, a rank must not take itself for a world of one."""
        return "none" if self.launcher in ("torch", None) else self.launcher

    def shape(self, ranks: int) -> tuple[int, int]:
        """Nodes, and ranks on each, of a job of so many ranks.

        Raises:
            ValueError: the ranks do not fill the nodes.
        """
        on_node = min(ranks, self.ranks_per_node or ranks)
        if ranks % on_node:
            raise ValueError(
                f"{ranks} ranks do not fill nodes of ranks_per_node: {on_node} (site {self.name}); "
                f"take a multiple of {on_node}, or change ranks_per_node"
            )
        return ranks // on_node, on_node

    def gpus(self, device: str) -> int:
        """GPUs of one rank of a cell of this device.

        Raises:
            ValueError: a cell wants a GPU where the site has none.
        """
        if device == "cuda" and self.gpus_per_rank == 0:
            raise ValueError(
                f"the sweep has cells of device cuda, but site {self.name} has gpus_per_rank: 0; set it to 1, "
                "or take another site"
            )
        return self.gpus_per_rank if device == "cuda" else 0


def read_site(site: str) -> Site:
    """Read a site by name (`jobs/sites/NAME.yaml`) or by the path of a YAML file.

    Raises:
        ValueError: no such site, or a file with mistakes; the message has all of them.
    """
    path = _find(site)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"site {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"site {path} must be a mapping, such as 'executor: slurm'")  # noqa: TRY004 - users get ValueError
    if wrong := [*_mistakes(raw)]:
        raise ValueError("\n".join(f"site {path.stem}: {w}" for w in wrong))
    return Site(**{**raw, "name": path.stem, "setup": tuple(raw.get("setup", ()))})


def max_array(site: Site) -> int:
    """Elements that one array may have: the site's word, else Slurm's own (its MaxArraySize), else Slurm's default."""
    if site.executor != "slurm":
        return sys.maxsize
    if site.max_array is not None:
        return site.max_array
    if shutil.which("scontrol") is None:
        return SLURM_DEFAULT_MAX_ARRAY
    command = ["scontrol", "show", "config"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise ValueError("Slurm does not answer (scontrol show config took 60 s); try again later") from error
    found = (line.split("=")[1] for line in shown.splitlines() if line.startswith("MaxArraySize"))
    return int(next(found, SLURM_DEFAULT_MAX_ARRAY))


def _find(site: str) -> Path:
    if Path(site).suffix in (".yaml", ".yml"):
        return Path(site)
    if site not in names("sites"):
        raise ValueError(f"unknown site {site!r}: {near(site, names('sites'))}; or give the path of a .yaml file")
    path: Path = ROOT / FOLDERS["sites"] / f"{site}.yaml"
    return path


def _mistakes(raw: Mapping[Any, Any]) -> Iterator[str]:
    kinds = typing.get_type_hints(Site, include_extras=True)
    del kinds["name"]
    yield from (f"unknown field {k!r}: {near(str(k), kinds)}" for k in raw if k not in kinds)
    known = {k: v for k, v in raw.items() if k in kinds}
    wrong = {k: problem(v, _given(kinds[k])) for k, v in known.items()}
    yield from (f"{k}: expected {wrong[k]}, got {raw[k]!r}" for k in wrong if wrong[k])
    if not any(wrong.values()):
        yield from _clashes(known)


def _given(kind: Any) -> Any:
    """The type of a field that is written down: `str | None` is text, since None means 'not written'."""
    options = typing.get_args(kind)
    return options[0] if type(None) in options else kind


def _clashes(raw: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong between fields, each of which is right by itself."""
    executor = raw.get("executor")
    if executor is None:
        yield "executor is missing: slurm, local or debug"
    if executor == "slurm" and "launcher" not in raw:
        yield "launcher is missing: pmix, pmi2 or torch ('srun --mpi=list' shows what there is)"
    idle = SLURM_ONLY if executor in ("local", "debug") else ()
    yield from (f"{k} means nothing to executor {executor}; remove it" for k in idle if k in raw)
    texts = raw.get("env", {}).items()
    yield from (f"env: expected text, got {k}: {v!r}; put it in quotes" for k, v in texts if not isinstance(v, str))
    if 60 * raw.get("time_min", Site.time_min) <= raw.get("signal_s", Site.signal_s):
        yield "signal_s: expected less than time_min has seconds, else a job is told to stop before it starts"
