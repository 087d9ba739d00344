#!/usr/bin/env bash
# decode.sh FOLDER [PART...]: on a machine with H200s, from the repository's root: verifies, then times all of decoding.
# Each part ends within nine minutes and leaves its log, and CSVs of what it measured, in FOLDER:
#   verify   the twins of every op of decoding against float64; the engine's graph against the ordinary path
#   ops      every op and pipeline at the shapes of docs/kernels.md, with baselines and the copy bandwidth
#   keys     pipelines and what looks at keys on those of a model over real prose, not on random ones
#   grid     dense, Loki and Loki-Theta from 1k to 1M rows, batch 1 to 256: where they pay
#   8b       a decode step as one CUDA graph, shape of Llama 3 8B, batch 16, 4k to 32k tokens
#   long     the same over 131072 tokens, batch 4 and 1
#   linear   such a step beside a linear state of what was dropped
#   tp       the same at the shape of Llama 2 13B on 1, 2 and 4 GPUs, as many as there are
#   company  one such step on as many GPUs as there are, alone and beside other processes: what slows it down
# Without PART all of them. GPU=A100, say, on a machine with others: a sweep refuses to time a GPU that it does not name.
# TINY=1 does the same on a CPU, in Triton's interpreter and on a model of 0.2M parameters: what it times is nothing, but
# every command is tried.
set -uo pipefail
out=${1:?folder for the results}; shift; mkdir -p "$out"
site=$(mktemp -d); ln -sfn "$PWD" "$site/lacuna"; export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0
# in the foreground: a `timeout` with a group of its own outlives this script when that is stopped, and what it runs then
# shares the GPU with whatever is timed next
step() { local name=$1 limit=$2; shift 2; echo "== $name"; timeout --foreground "$limit" "$@" > "$out/$name.log" 2>&1 || { echo "$name FAILED ($?)"; failed=1; }; tail -n "${LINES_SHOWN:-15}" "$out/$name.log"; }
ops=(chosen_share choose_by_weight grow_box page_rows put_turned dense_decode lowrank_score select_topk gather_decode threshold_compact
  threshold_score theta_decode theta_rows add_norm sum_norm rotate_rows gate append_row sparq_score keep_rows topk_decode fill_missing swap_row marked_decode
  linear_decode taylor_features skinny_linear)
tests=(tests/kernels tests/models/test_engine.py tests/models/test_engine_cuda.py tests/models/test_cuda.py)
if [ -n "${TINY:-}" ]; then
  export TRITON_INTERPRET=1
  tests=(tests/kernels/test_theta_decode.py -k gqa4); ops=(theta_decode)
fi
file_of() { # NAME: its sweep file; a small twin of it where everything is tried on a CPU
  local file=jobs/sweeps/$1.yaml
  if [ -z "${TINY:-}" ]; then
    [ "${GPU:-H200}" = H200 ] || { sed "s/, gpu: H200/, gpu: '$GPU'/" "$file" > "$out/$1.yaml"; file=$out/$1.yaml; }
    echo "$file"; return
  fi
  sed -E 's/new: [a-z0-9-]+/new: tiny/; s/device: cuda/device: cpu/; s/bfloat16/float32/; s/rows: 1024/rows: 32/
    s/(batch: )(16|\[4, 1\]), (prompt: )(\[[^]]*\]|[0-9]+), (steps: )[0-9]+/\12, \396, \54/; s/engine: graph/engine: static/
    s/, gpu: H200//; s/tokens: (8192|32768)/tokens: 512/g; s/basis: \{/basis: {window: 128, /g; s/window: 32768/window: 128/
    s/every: 1024/every: 8/; s/ratchetkv: \{keep: 0.25/ratchetkv: {keep: 0.75/' "$file" > "$out/$1.yaml"
  echo "$out/$1.yaml"
}
sweep() { # NAME LIMIT RANKS: run, and keep the records as CSV even of a run that was cut off
  local name=$1 limit=$2 ranks=$3 file; file=$(file_of "$1")
  step "$name-$ranks" "$limit" mpirun --allow-run-as-root --bind-to none -np "$ranks" python3 -m lacuna run "$file" --set ranks="$ranks" --store "$out/store"
  python3 -m lacuna collect "$file" --set ranks="$ranks" --store "$out/store" -o "$out/$name-$ranks.csv" > /dev/null || failed=1
}
for part in "${@:-verify ops keys 8b long linear tp company grid}"; do for one in $part; do
  case $one in
    verify) step tests 500 python3 -m pytest "${tests[@]}" -q -x -p no:cacheprovider
            step verify 200 python3 -m lacuna verify "${ops[@]}" ;;
    ops) if [ -n "${TINY:-}" ]; then step ops 120 python3 -m lacuna bench "${ops[@]}" --device cpu -o "$out/ops.csv"
         else step ops 500 python3 -m lacuna bench "${ops[@]}" loki_pipeline loki_theta_pipeline -o "$out/ops.csv"; fi ;;
    grid) if [ -n "${TINY:-}" ]; then step grid 60 python3 -m lacuna bench gate --rows 64 128 --batch 1 2 --device cpu -o "$out/grid.csv"
          else step grid 530 python3 -m lacuna bench loki_pipeline loki_theta_pipeline --rows 1024 8192 65536 262144 1048576 --batch 1 16 64 256 -o "$out/grid.csv"; fi ;;
    keys) if [ -n "${TINY:-}" ]; then step keys 60 python3 -m lacuna bench sparq_score --keys random --rows 64 --device cpu -o "$out/keys.csv"
          else step keys 300 python3 -m lacuna bench loki_pipeline loki_theta_pipeline theta_decode sparq_score choose_by_weight theta_rows --keys pocket -o "$out/keys.csv"; fi ;;
    8b) sweep decode_h200 530 1 ;;
    long) sweep decode_long_h200 300 1 ;;
    linear) sweep linear_h200 400 1 ;;
    tp) gpus=$(nvidia-smi -L 2> /dev/null | grep -c ^GPU); [ -n "${TINY:-}" ] && gpus=2
        for ranks in 1 2 4; do [ "$ranks" -le "$gpus" ] && sweep decode_tp_h200 170 "$ranks"; done ;;
    company) gpus=$(nvidia-smi -L 2> /dev/null | grep -c ^GPU); [ -n "${TINY:-}" ] && gpus=2
        sed -E 's/^method: .*/method: full/; s/steps: 64/steps: 320/' "$(file_of decode_tp_h200)" > "$out/company.yaml"
        step company 120 mpirun --allow-run-as-root --bind-to none -np "$gpus" python3 tests/gpu/step_company.py "$out" run "$out/company.yaml" --set ranks="$gpus" --store "$out/store-company" ;;
    *) echo "no part $one: verify, ops, keys, grid, 8b, long, linear, tp or company"; exit 2 ;;
  esac
done; done
exit $failed
