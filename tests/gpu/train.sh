#!/usr/bin/env bash
# train.sh FOLDER DATA: on a machine with CUDA GPUs, from the repository's root: trains `pocket-landmark` and `pocket`,
# compares landmark's kernels in training, measures the models. DATA holds the texts that the sweeps name. RANKS GPUs
# (default 1) share a training, where a step has as many parts. Each training is first probed for some seconds, then cut to what is left of its part's
# LIMIT seconds (default 530). FOLDER gets one pack of logs, tables and records, and one of each model, in pieces of at
# most 15 MiB: `cat pocket.tar.gz.* | tar xz`. WORK keeps the store between parts; a part may be run again. Where DATA has
# cache.tar.gz.*, the compiled kernels of another run, they are taken; they come back in FOLDER.
set -uo pipefail
out=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd); data=$(cd "${2:?folder of the texts}" && pwd)
site=$(mktemp -d); ln -sfn "$PWD" "$site/lacuna"; export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
work=${WORK:-/tmp/lacuna-train}; mkdir -p "$work/logs"; export LACUNA_STORE=${LACUNA_STORE:-$work/store}
export TORCHINDUCTOR_CACHE_DIR=$work/cache/inductor TRITON_CACHE_DIR=$work/cache/triton
[ ! -f "$data/cache.tar.gz.aa" ] || cat "$data"/cache.tar.gz.* | tar xz -C "$work"
ranks=${RANKS:-1}; sweeps=${SWEEPS:-jobs/sweeps}; limit=${LIMIT:-530}; here=tests/gpu; failed=0
left() { local seconds=$((limit - SECONDS + began)); echo $((seconds > 1 ? seconds : 1)); }
lacuna() { python3 -m lacuna "$@" --data "$data"; }
# without binding: mpirun would give each of two ranks one core, for text, batches and launches alike
start() { if [ "$1" = 1 ]; then "${@:2}"; else mpirun --allow-run-as-root --bind-to none -np "$1" "${@:2}"; fi; }
run() { # SWEEP NAME RANKS
  start "$3" timeout "$(left)" python3 -m lacuna run "$1" --data "$data" --set "ranks=$3" > "$work/logs/$2.log" 2>&1
  local code=$?; echo "-- $2: exit $code, $(left) s left"; [ $code = 0 ] && head -n 14 "$work/logs/$2.log" || tail -n 40 "$work/logs/$2.log"; return $code
}
collect() { lacuna collect "$1" --set "ranks=$3" -o "$work/logs/$2.csv"; }
last() { lacuna plan "$1" --set "ranks=$ranks" --json | python3 -c "import json, sys; print(json.load(sys.stdin)['cells'][-1]['$2'])"; }
key() { last "$1" key; }
state() { last "$1" state; } # a model that is there is not lost because the table after it took too long
profile() { # SWEEP NAME: its probe on one GPU, three steps of it profiled
  python3 $here/budget.py probe "$sweeps/$1.yaml" "$work/$2-profile.yaml" "${LAUNCH:-graph}" || return 1
  timeout "$(left)" python3 $here/profile_training.py "$work/$2-profile.yaml" --data "$data" --set ranks=1 > "$work/logs/$2-profile.log" 2>&1
  local code=$?; echo "-- $2-profile: exit $code, $(left) s left"; head -n 70 "$work/logs/$2-profile.log" | cut -c1-220; return $code
}
pack() { [ ! -e "$work/$1" ] || tar cz -C "$work" "$1" | split -b 15m - "$out/$1.tar.gz."; }
train() { # SWEEP NAME: probe, cut to the time, train, write the checkpoint
  rm -rf "${work:?}/$2"
  for launch in ${LAUNCH:-graph call}; do # should a CUDA graph fail on this machine, then without; the log says so
    python3 $here/budget.py probe "$sweeps/$1.yaml" "$work/$2-probe.yaml" $launch || return 1
    run "$work/$2-probe.yaml" "$2-probe-$launch" "$ranks" && break
  done || return 1
  collect "$work/$2-probe.yaml" "$2-probe" "$ranks" || return 1
  # 45 s: start, kernels from the cache, held-out text, the record's table, the checkpoint
  python3 $here/budget.py fit "$sweeps/$1.yaml" "$work/$2.yaml" $launch $(($(left) - 45)) "$work/logs/$2-probe.csv" || return 1
  cp "$work/$2.yaml" "$work/logs/"
  run "$work/$2.yaml" "$2" "$ranks" || [ "$(state "$work/$2.yaml")" = ok ] || return 1
  python3 -m lacuna weights export "$(key "$work/$2.yaml")" "$work/$2" && pack "$2" && collect "$work/$2.yaml" "$2" "$ranks"
}
measure() { # NAME of a model that was trained
  [ -d "$work/$1" ] || return 0
  cp "$sweeps/measure-$1.yaml" "$work/" && run "$work/measure-$1.yaml" "measure-$1" 1
  collect "$work/measure-$1.yaml" "measure-$1" 1
}
killed() { # SWEEP: on two GPUs, both ranks killed when a first state is there
  mpirun --allow-run-as-root --bind-to none -np 2 python3 -m lacuna run "$1" --data "$data" --set ranks=2 > "$work/logs/killed.log" 2>&1 &
  local mpi=$!
  until compgen -G "$LACUNA_STORE/work/*/*/state.safetensors" > /dev/null; do kill -0 $mpi || return 1; sleep 0.05; done
  # shellcheck disable=SC2046 # one word for each rank
  kill -9 $(pgrep -P $mpi); wait $mpi
  echo "-- killed: exit $?, $(find "$LACUNA_STORE/records" -name '*.json' | wc -l) records"
}
equal() { # one GPU, two, and two that were killed, side by side; the last is taken up alone: one curve
  local sweep=$sweeps/train-ranks.yaml one=$work/one two=$work/two three=$work/killed; rm -rf "$one" "$two" "$three"
  LACUNA_STORE=$one run "$sweep" equal-1 1 & LACUNA_STORE=$two run "$sweep" equal-2 2 & LACUNA_STORE=$three killed "$sweep"; wait
  LACUNA_STORE=$three run "$sweep" equal-killed 2
  python3 $here/curves.py "$one" "$two" "$three" | tee "$work/logs/equal.txt"; local code=${PIPESTATUS[0]}
  for store in "$one" "$two" "$three"; do cp -r "$store/records" "$work/logs/$(basename "$store")-records"; done
  rm -rf "$one" "$two" "$three"; return "$code"
}
for part in ${PARTS:-landmark compare pocket measure}; do
  began=$SECONDS; echo "== $part on $ranks GPU(s), $limit s"
  case $part in
    profile) for name in pocket-landmark pocket; do profile train-$name $name || failed=1; done ;;
    pocket) train train-pocket pocket || failed=1 ;;
    landmark) train train-pocket-landmark pocket-landmark || failed=1 ;;
    compare) { run "$sweeps/train-compare.yaml" compare 1; collect "$sweeps/train-compare.yaml" compare 1; } || failed=1 ;;
    equal) equal || failed=1 ;;
    measure) for name in pocket pocket-landmark; do measure $name || failed=1; done ;;
    *) echo "no part $part: profile, landmark, compare, pocket, equal, measure"; failed=1 ;;
  esac
  [ -d "$LACUNA_STORE/records" ] && cp -r "$LACUNA_STORE/records" "$work/logs/"
  rm -f "$out"/logs.tar.gz.* "$out"/cache.tar.gz.*; pack logs; pack cache
done
ls -l "$out"
exit $failed
