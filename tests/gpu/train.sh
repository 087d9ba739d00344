#!/usr/bin/env bash
# train.sh FOLDER DATA: on a machine with one CUDA GPU, from the repository's root: trains `pocket` and `pocket-landmark`,
# measures them, and leaves the checkpoints with card and curve, logs, and tables in FOLDER. DATA holds
# train_books_00.tar.xz, train_books_01.tar.xz and val.jsonl.gz. Each part ends within LIMIT seconds (default 530); a
# training that was not done by then goes on from its last state when the part is run again.
set -uo pipefail
out=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd); data=$(cd "${2:?folder of the texts}" && pwd)
site=$(mktemp -d); ln -sfn "$PWD" "$site/lacuna"; export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export LACUNA_STORE=${LACUNA_STORE:-$out/store}
failed=0
run() { timeout "${LIMIT:-530}" python3 -m lacuna run "$1" --data "$data" ${SET:-} > "$out/$2.log" 2>&1 || failed=1; tail -n 12 "$out/$2.log"; }
last() { python3 -m lacuna plan "$1" --data "$data" ${SET:-} --json | python3 -c 'import json, sys; print([c["key"] for c in json.load(sys.stdin)["cells"] if c["state"] == "ok"][-1])'; }
export_model() { [ -d "$out/$2" ] || python3 -m lacuna weights export "$(last "$1")" "$out/$2" || failed=1; }
sweeps=${SWEEPS:-jobs/sweeps}
for part in ${PARTS:-pocket landmark measure}; do
  echo "== $part"
  case $part in
    pocket) run "$sweeps/train-pocket.yaml" pocket && [ $failed = 0 ] && export_model "$sweeps/train-pocket.yaml" pocket ;;
    landmark) run "$sweeps/train-pocket-landmark.yaml" landmark && [ $failed = 0 ] && export_model "$sweeps/train-pocket-landmark.yaml" pocket-landmark ;;
    measure)
      cp "$sweeps"/measure-pocket*.yaml "$out"
      for name in measure-pocket measure-pocket-landmark; do
        [ -d "$out/${name#measure-}" ] || continue
        run "$out/$name.yaml" "$name"
        python3 -m lacuna collect "$out/$name.yaml" --data "$data" ${SET:-} -o "$out/$name.csv" || failed=1
      done ;;
  esac
done
exit $failed
