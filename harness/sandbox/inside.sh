# Runs in new namespaces, as their root, before the program: builds a root of its own and leaves the old one for good.
# inside.sh ROOT MEMORY_BYTES PROCESSES SECONDS SCRATCH_MIB USER PYTHON FOLDER...
# Standard input: a line, once the users of the namespace are known; then the program.
set -eu
read -r _
root=$1 memory=$2 processes=$3 seconds=$4 scratch=$5 user=$6 python=$7
shift 7
mount --make-rprivate /
mount -t tmpfs -o size=1m,mode=755 none "$root"
for folder in "$@"; do
  if [ -L "$folder" ]; then  # /bin is often a link to /usr/bin
    ln -s "$(readlink "$folder")" "$root$folder"
  else
    mkdir -p "$root$folder"
    mount --rbind "$folder" "$root$folder"
    mount -o remount,bind,ro "$root$folder" 2> /dev/null || mount -o remount,bind,ro,nosuid,nodev "$root$folder"
  fi
done
mkdir -p "$root/scratch" "$root/old" "$root/dev"
mount -t tmpfs -o "size=${scratch}m,mode=777,nosuid,nodev" none "$root/scratch"
: > "$root/dev/null"
mount --bind /dev/null "$root/dev/null"
cd "$root"
pivot_root . old
# umount and mount want /proc, which is not here: MNT_DETACH the old root, then MS_REMOUNT | MS_BIND | MS_RDONLY this one
"$python" -I -S -c '
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if libc.umount2(b"/old", 2) or os.rmdir("/old") or libc.mount(None, b"/", None, 32 | 4096 | 1, None):
    raise OSError(ctypes.get_errno(), "the old root cannot be left")
'
cd /scratch
export HOME=/scratch TMPDIR=/scratch PATH=/usr/bin:/bin
groups=--clear-groups
if [ "$user" = 0 ]; then groups=--keep-groups; fi # who is not root outside may not change them, and none of them is mapped
exec setpriv --reuid="$user" --regid="$user" $groups --no-new-privs --bounding-set=-all --inh-caps=-all \
  prlimit --as="$memory" --nproc="$processes" --cpu="$((${seconds%.*} + 1))" --fsize=$((scratch << 20)) --core=0 --nofile=64 -- \
  timeout --signal=KILL "$seconds" "$python" -I -  # the first process of a namespace, timeout, takes all with it
