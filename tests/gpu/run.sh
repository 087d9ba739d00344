#!/usr/bin/env bash
# run.sh FOLDER: on a machine with CUDA GPUs, from the repository's root: tests, kernels verified and timed, the demo
# sweep on one GPU and, where there are two, on two. Leaves logs, CSVs and the report's table in FOLDER.
set -uo pipefail
out=${1:?folder for the results}; mkdir -p "$out"
site=$(mktemp -d); ln -sfn "$PWD" "$site/lacuna"; export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0
step() { local name=$1; shift; echo "== $name"; timeout "${LIMIT:-280}" "$@" > "$out/$name.log" 2>&1 || { failed=1; echo "$name FAILED"; }; tail -n "${LINES_SHOWN:-12}" "$out/$name.log"; }
demo=jobs/sweeps/demo.yaml
for part in ${PARTS:-tests bench demo}; do
  case $part in
    tests) step tests python3 -m pytest tests/kernels tests/models -q -x -p no:cacheprovider ;;
    bench) step verify python3 -m lacuna verify; step bench python3 -m lacuna bench -o "$out/kernels.csv" ;;
    demo)
      for ranks in 1 2; do
        [ "$(nvidia-smi -L | wc -l)" -ge "$ranks" ] || continue
        set_="--set device=cuda --set ranks=$ranks --store $site/store"
        step "demo$ranks" mpirun --allow-run-as-root -np "$ranks" python3 -m lacuna run $demo $set_
        python3 -m lacuna collect $demo $set_ -o "$out/demo$ranks.csv"
        python3 -m lacuna status $demo $set_
      done ;;
  esac
done
exit $failed
