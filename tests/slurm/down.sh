#!/usr/bin/env bash
# Stop the Slurm that up.sh started in ROOT: tests/slurm/down.sh ROOT. What it did not start is left alone.
set -uo pipefail

[ -d "${1:?usage: down.sh ROOT}/run" ] || exit 0
root=$(cd "$1" && pwd)
export SLURM_CONF=$root/etc/slurm.conf

# a zombie answers `kill -0`; in a container nobody may be there to reap it
alive() { [ -r "/proc/$1/stat" ] && ! grep -q '^[0-9]* (.*) Z ' "/proc/$1/stat"; }

stop() { # pid file; a slurmd without its controller ignores TERM
  local pid
  pid=$(cat "$1" 2> /dev/null) && [ -n "$pid" ] || return
  kill "$pid" 2> /dev/null
  for _ in $(seq 40); do
    alive "$pid" || break
    sleep 0.25
  done
  if alive "$pid"; then kill -9 "$pid"; fi
  rm -f "$1"
}

if [ -s "$root/run/slurmctld.pid" ]; then
  timeout 10 scancel --user="$(id -un)" 2> /dev/null
  for _ in $(seq 40); do
    [ -z "$(timeout 5 squeue -h -t R,CG 2> /dev/null)" ] && break
    sleep 0.25
  done
fi
for file in "$root"/run/slurmd.*.pid "$root"/run/{slurmctld,slurmdbd,mariadbd,munged}.pid; do
  [ -e "$file" ] && stop "$file"
done
# who watches over a step may wait for ever for ranks that a requeue has ended
for name in $(grep -lsx slurmstepd /proc/[0-9]*/comm); do
  if [ "$(readlink "${name%comm}cwd")" = "$root/log" ]; then kill -9 "${name//[^0-9]/}"; fi
done
exit 0
