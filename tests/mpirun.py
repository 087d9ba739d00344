"""Start a worker of the tests under mpirun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def mpirun(ranks, worker, *args, timeout=300):
    """Run `worker` with so many ranks; returns what it printed, and fails the test with its errors if it fails.

    Open MPI needs leave to run as root and on few cores; MPICH knows no such flags.
    """
    program = shutil.which("mpirun") or str(Path(sys.executable).parent / "mpirun")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    flags = ["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in said or "OpenRTE" in said else []
    paths = [str(Path(worker).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [program, *flags, "-np", str(ranks), sys.executable, str(worker), *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
