"""Where a number comes from: revision, packages, machine, launcher, command."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..results.digest import source_digest
from .ranks import Ranks

PACKAGES = (
    "axonn",
    "lacuna",
    "lm_eval",
    "mpi4py",
    "numpy",
    "submitit",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
)
SLURM = (
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_PARTITION",
    "SLURM_RESTART_COUNT",
)
ROOT = Path(__file__).resolve().parent.parent


def provenance(ranks: Ranks, device: str) -> dict[str, Any]:
    """Everything a reviewer asks for, as a plain mapping."""
    return {
        **_machine(device),
        "ranks": ranks.size,
        "launcher": ranks.launcher,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "slurm": {k: v for k, v in os.environ.items() if k in SLURM},
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
    }


@functools.cache
def _machine(device: str) -> dict[str, Any]:
    code = {**_git(), "source_digest": source_digest(ROOT), "packages": _packages()}
    host = {"python": platform.python_version(), "host": socket.gethostname(), "os": platform.platform(), "cpu": _cpu()}
    return {**code, **host, **(_gpu() if device == "cuda" else {"gpu": ""})}


def _git() -> dict[str, Any]:
    """Revision and dirtiness of the checkout; empty where lacuna was installed from a wheel."""
    try:
        revision = _ask("git", "rev-parse", "HEAD")
        changed = _ask("git", "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {"git_revision": "", "git_dirty": None}
    return {"git_revision": revision, "git_dirty": bool(changed)}


def _ask(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    return done.stdout.strip()


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> dict[str, Any]:
    import torch  # noqa: PLC0415

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {"gpu": properties.name, "gpu_gib": round(properties.total_memory / 2**30), "driver": _driver(),
            "cuda": torch.version.cuda}  # fmt: skip


def _driver() -> str:
    """The driver's version; empty where nobody can be asked, as in many containers."""
    try:
        return next(iter(_ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()), "")
    except (OSError, subprocess.SubprocessError):
        return ""
