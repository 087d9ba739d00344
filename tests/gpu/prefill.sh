#!/usr/bin/env bash
# prefill.sh FOLDER [PART ...] [--tiny]: from the repository's root, the kernels for many query rows verified, then timed
# against PyTorch's flash and cuDNN attention. Each part ends within 9 minutes; leaves prefill_PART.csv and .log in FOLDER.
# PART quick, of some minutes, verifies all of them, then times the main shapes; PART scoring times one text of 32768
# tokens under every method.
set -uo pipefail
out=${1:?folder for the results}; shift; mkdir -p "$out"
tiny=(); parts=()
for word in "$@"; do if [ "$word" = --tiny ]; then tiny=(--tiny); else parts+=("$word"); fi; done
[ ${#parts[@]} -gt 0 ] || parts=(landmark columns thresholds)
[ ${#tiny[@]} -eq 0 ] || export TRITON_INTERPRET=1
site=$(mktemp -d); ln -sfn "$PWD" "$site/lacuna"; export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0
for part in "${parts[@]}"; do
  echo "== $part"
  case $part in
    quick) command=(tests/gpu/prefill_quick.py "$out") ;;
    scoring) command=(tests/gpu/scoring.py "$out") ;;
    *) command=(tests/gpu/prefill.py "$out" "$part") ;;
  esac
  timeout "${LIMIT:-520}" python3 "${command[@]}" ${tiny[@]+"${tiny[@]}"} > "$out/prefill_$part.log" 2>&1 \
    || { failed=1; echo "$part FAILED"; }
  tail -n "${LINES_SHOWN:-70}" "$out/prefill_$part.log"
done
exit $failed
