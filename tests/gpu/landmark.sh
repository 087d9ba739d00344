#!/usr/bin/env bash
# landmark.sh FOLDER DATA PART...: on a machine with a CUDA GPU, from the repository's root: parts of landmark.yaml, which
# share no model and so may run side by side, each on a GPU: plain, control, tables, passkeys. DATA holds the texts that the
# sweep names. FOLDER gets a log, the records and a CSV of each part, also of one that was cut off after LIMIT seconds
# (default 540).
set -uo pipefail
out=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd); data=$(cd "${2:?folder of the texts}" && pwd); shift 2
site=$(mktemp -d); ln -sfn "$PWD" "$site/lacuna"; export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export LACUNA_STORE=${LACUNA_STORE:-$site/store}; sweep=${SWEEP:-jobs/sweeps/landmark.yaml}; failed=0
declare -A blocks=([plain]="0 1" [control]=2 [tables]="3 4 5 6" [passkeys]=7)
only() { # PART: the sweep with its blocks alone
  python3 -c '
import sys, yaml
sweep = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))
sweep["blocks"] = [sweep["blocks"][int(n)] for n in sys.argv[2:]]
print(yaml.safe_dump(sweep, sort_keys=False))' "$sweep" ${blocks[$1]:?no part $1: plain, control, tables, passkeys}
}
for part in "${@:?a part: plain, control, tables, passkeys}"; do
  only "$part" > "$site/$part.yaml" || exit 2
  timeout "${LIMIT:-540}" python3 -m lacuna run "$site/$part.yaml" --data "$data" 2>&1 | tee "$out/$part.log" | grep -E '^\[|rror' | cut -c1-250
  [ "${PIPESTATUS[0]}" = 0 ] || { failed=1; echo "$part FAILED"; }
  python3 -m lacuna collect "$site/$part.yaml" --data "$data" -o "$out/$part.csv"
  mkdir -p "$out/records"; cp -r "$LACUNA_STORE/records/." "$out/records/"
done
exit $failed
