#!/usr/bin/env bash
# Start a private one-machine Slurm: tests/slurm/up.sh ROOT [NODES] [GPUS_PER_NODE]
#
# Root is needed, systemd and cgroups are not. Several node names share this host; GPUs are generic and do nothing.
# Key, sockets, state and logs stay in ROOT. The last line printed is what a client needs: export SLURM_CONF=...
#   SLURM_CPUS       cores that each node claims (default: all of the machine's, and 2 at least)
#   SLURM_BASE_PORT  first of the ports (default: 17000)
#   SLURM_DBD=1      accounting too, so that `sacct` works (needs slurmdbd, slurm-wlm-mysql-plugin, mariadb-server)
set -euo pipefail

root=${1:?usage: up.sh ROOT [NODES] [GPUS_PER_NODE]}
nodes=${2:-2}
gpus=${3:-2}
port=${SLURM_BASE_PORT:-17000}
cores=$(nproc)
cpus=${SLURM_CPUS:-$((cores > 2 ? cores : 2))}
dbd=${SLURM_DBD:-0}
host=$(hostname -s)
mem_mb=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 - 512))

for tool in slurmctld slurmd sinfo munged; do
  command -v $tool > /dev/null || { echo "up.sh: no $tool here; run tests/slurm/install.sh first" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "up.sh: the daemons are run by root; run this as root" >&2; exit 1; }

mkdir -p "$root" && root=$(cd "$root" && pwd)
mkdir -p "$root"/{etc,run,log,state,dev,acct}
chmod 755 "$root" "$root/run"
socket=$root/run/munge.socket
export SLURM_CONF=$root/etc/slurm.conf

accounting() {
  if [ "$dbd" = 0 ]; then
    echo "AccountingStorageType=accounting_storage/none"
  else
    # the socket is named again as the password: AuthInfo alone does not reach the way to slurmdbd
    printf '%s\n' AccountingStorageType=accounting_storage/slurmdbd AccountingStorageHost=127.0.0.1 \
      "AccountingStoragePort=$((port + 1))" "AccountingStoragePass=$socket" AccountingStorageTRES=gres/gpu
  fi
}

write_conf() {
  # cred_expire: a requeued job waits that long (120 s by default); in less than the 7 s that a killed step may take to
  # go, its next step could not be launched and the job would fail; nor could one where slurmd is held up for longer
  # TmpFS: without an own one, two nodes of one host take the same folder for PMIx
  # preempt_send_user_signal: a job hears of its preemption before it happens
  # config_overrides: nodes may claim more cores than there are
  # MinJobAge: `squeue -t all` remembers ended jobs, as there is no sacct
  # PrologSlurmctld: a job that is queued again keeps its number, and its step cannot start where PMIx left folders or a
  # socket of the one that was killed; slurmd's own prolog is not run again for a number that it remembers
  # MessageTimeout: a job ends at once whose srun gets no answer of slurmctld's for so long (10 s by default)
  cat << CONF
ClusterName=onebox
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$port
AuthType=auth/munge
AuthInfo=socket=$socket,cred_expire=30
CredType=cred/munge
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
TmpFS=$root/tmp/%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/slurmd.%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
JobAcctGatherType=jobacct_gather/linux
JobCompType=jobcomp/filetxt
JobCompLoc=$root/acct/jobcomp.txt
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=3600
PrologSlurmctld=$root/etc/prolog
MessageTimeout=60
MaxArraySize=1001
GresTypes=gpu
$(accounting)
CONF
  for i in $(seq "$nodes"); do
    echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 100 + i)) CPUs=$cpus" \
      "RealMemory=$mem_mb Gres=gpu:$gpus State=UNKNOWN"
  done
  echo "PartitionName=main Nodes=ALL Default=YES DefaultTime=10 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP"
  echo "PartitionName=low Nodes=ALL DefaultTime=10 MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=15 State=UP"
}

write_prolog() {
  cat << SH
#!/bin/sh
cd "$root" && rm -rf tmp/*/spmix_appdir_*_\$SLURM_JOB_ID.* spool/*/*pmix.\$SLURM_JOB_ID.*
SH
}

write_gres() {
  # Slurm counts GPUs by their device files; /dev/null under another name will do
  for g in $(seq 0 $((gpus - 1))); do
    [ -c "$root/dev/nvidia$g" ] || mknod "$root/dev/nvidia$g" c 1 3
  done
  for i in $(seq "$nodes"); do
    echo "NodeName=n$i Name=gpu File=$root/dev/nvidia[0-$((gpus - 1))]"
  done
}

start_munge() {
  [ -s "$root/etc/munge.key" ] || (umask 077 && head -c 128 /dev/urandom > "$root/etc/munge.key")
  munged --force --key-file="$root/etc/munge.key" --socket="$socket" --pid-file="$root/run/munged.pid" \
    --log-file="$root/log/munged.log" --seed-file="$root/run/munged.seed" --num-threads=2
}

start_accounting() {
  local sql="$root/run/mysql.sock"
  [ -d "$root/mysql/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$root/mysql" \
    --auth-root-authentication-method=normal --skip-test-db > "$root/log/mariadb-install.log" 2>&1
  setsid mariadbd --no-defaults --user=root --datadir="$root/mysql" --socket="$sql" --pid-file="$root/run/mariadbd.pid" \
    --bind-address=127.0.0.1 --port=$((port + 2)) --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
    > "$root/log/mariadbd.log" 2>&1 < /dev/null &
  wait_for 60 mariadb-admin --no-defaults -S "$sql" ping
  mariadb --no-defaults -S "$sql" -e "CREATE DATABASE IF NOT EXISTS slurm_acct_db;
    CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
    GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';"
  (umask 077 && printf '%s\n' AuthType=auth/munge "AuthInfo=socket=$socket,cred_expire=30" "DbdHost=$host" \
    DbdAddr=127.0.0.1 "DbdPort=$((port + 1))" SlurmUser=root "PidFile=$root/run/slurmdbd.pid" \
    "LogFile=$root/log/slurmdbd.log" StorageType=accounting_storage/mysql StorageHost=127.0.0.1 \
    "StoragePort=$((port + 2))" StorageUser=slurm StoragePass=slurm StorageLoc=slurm_acct_db \
    > "$root/etc/slurmdbd.conf")
  slurmdbd
  wait_for 30 timeout 3 sacctmgr -n -i list cluster
  timeout 10 sacctmgr -i add cluster onebox > /dev/null 2>&1 || true # it is there after a restart
}

wait_for() { # seconds command...
  local tries=$(($1 * 4))
  shift
  for _ in $(seq "$tries"); do
    "$@" > /dev/null 2>&1 && return
    sleep 0.25
  done
  echo "up.sh: gave up on: $*; see $root/log" >&2
  return 1
}

all_idle() { [ "$(timeout 5 sinfo -h -o %T | sort -u)" = idle ]; }

write_conf > "$root/etc/slurm.conf"
write_prolog > "$root/etc/prolog" && chmod 755 "$root/etc/prolog"
if [ "$gpus" -gt 0 ]; then write_gres; fi > "$root/etc/gres.conf"
for i in $(seq "$nodes"); do mkdir -p "$root/spool/n$i" "$root/tmp/n$i"; done
start_munge
if [ "$dbd" != 0 ]; then start_accounting; fi
slurmctld
for i in $(seq "$nodes"); do slurmd -N "n$i"; done
wait_for 30 all_idle || { timeout 5 sinfo -R >&2; exit 1; }
echo "export SLURM_CONF=$SLURM_CONF"
