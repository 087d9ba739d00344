#!/usr/bin/env bash
# Install what up.sh needs, from Debian's own archive: tests/slurm/install.sh (as root). Does nothing where it is there.
set -euo pipefail

missing() { for tool in slurmctld slurmd sinfo munged mpirun; do command -v $tool > /dev/null || return 0; done; return 1; }

missing || exit 0
[ "$(id -u)" = 0 ] || { echo "install.sh: run this as root" >&2; exit 1; }
command -v apt-get > /dev/null || { echo "install.sh: no apt-get; install Slurm, munge and Open MPI by hand" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge openmpi-bin libopenmpi-dev
