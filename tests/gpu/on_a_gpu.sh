#!/usr/bin/env bash
# All that decodetax asks of whoever has a GPU, in at most 9 minutes and without a network:
#
#     bash tests/gpu/on_a_gpu.sh [FOLDER]
#
# Checks the machine (`decodetax doctor`), measures it (`decodetax run` with its report), compiles the kernels of
# tests/gpu in parallel processes that do not use the GPU, runs these tests, and tunes the kernels for a short
# time. FOLDER, by default results/gpu-DATE, gets summary.md, run.json, report.html and a log of each step. A step
# that fails, or takes too long, stops no other one.
#
# Needs python3, or the $PYTHON named, with decodetax and its extra "test": installed, or on PYTHONPATH.
#
# Exit code 0: every step passed; 1: one did not; 2: no GPU, or FOLDER cannot be used. summary.md is written each
# time but for a FOLDER that cannot be used.
if [ -z "${BASH_VERSION:-}" ]; then
  echo "run it with bash: bash $0 [FOLDER]" >&2
  exit 2
fi
set -uo pipefail
if [ "$#" -gt 1 ] || [[ ${1:-} == -* ]]; then
  echo "usage: bash $0 [FOLDER]" >&2
  exit 2
fi
unset CDPATH # with which cd prints

total_s=${ON_A_GPU_SECONDS:-540}
kill_after_s=${ON_A_GPU_KILL_AFTER:-8} # seconds from Ctrl-C, at which `decodetax run` writes its file, to the kill
summary_s=12                           # kept for the summary
python=${PYTHON:-python3}

started=$(date -u +%Y%m%d-%H%M%S)
folder=${1:-$(dirname "$0")/../../results/gpu-$started}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) && [ -w "$folder" ] || {
  echo "FOLDER: '$folder' cannot be written; name a folder that can" >&2
  exit 2
}
if [ -n "$(ls -A "$folder")" ]; then
  echo "FOLDER: '$folder' is not empty; name a new folder" >&2
  exit 2
fi
cd "$(dirname "$0")/../.." || exit 2

# The cache of compiled kernels begins empty, so that all compilations are counted.
cache=$(mktemp -d 2>/dev/null) || cache=$folder/cache # which is removed at the end
export TRITON_CACHE_DIR=$cache
unset TRITON_INTERPRET

rows=()           # of the summary's table
gpu=""            # its name, or empty
no_gpu_because="" # the reason
gpus=0            # number of GPUs
fit=1             # processes whose tests fit in its memory, 8 GB each
all_passed=yes
tests_s=0 # of all steps that run tests
job=""    # process group of the command that runs
set -m # each command has a process group of its own, and takes Ctrl-C

# within LIMIT_S LOG COMMAND...: runs a command, at most LIMIT_S seconds and then kill_after_s until it is killed.
within() {
  local limit_s=$1 log=$2
  shift 2
  # In the foreground, as otherwise it sends each signal twice: the second would interrupt the writing of a file.
  timeout --foreground --signal=INT --kill-after="$kill_after_s" "$limit_s" "$@" >"$log" 2>&1 </dev/null &
  job=$!
  local code=0
  wait "$job" || code=$?
  kill -KILL -- "-$job" 2>/dev/null # what it left running
  return "$code"
}

# step NAME LIMIT_S LOG COMMAND...: a row of the summary; within what is left of the total time.
step() {
  local name=$1 limit_s=$2 log=$3 begin_s=$SECONDS code=0 result
  shift 3
  local left_s=$((total_s - summary_s - kill_after_s - SECONDS))
  if [ "$left_s" -lt 5 ]; then
    skip "$name" "left out: no time left"
    return
  fi
  [ "$limit_s" -le "$left_s" ] || limit_s=$left_s
  echo "$name: at most $limit_s s ..."
  within "$limit_s" "$folder/$log" "$@" || code=$?
  case $code in
  0) result="passed" ;;
  124 | 137) result="ended after its limit of $limit_s s" ;;
  *) result="failed (exit code $code)" ;;
  esac
  [ "$code" = 0 ] || all_passed=no
  case $name in *tests) tests_s=$((tests_s + SECONDS - begin_s)) ;; esac
  echo "$name: $result, $((SECONDS - begin_s)) s"
  rows+=("| $name | $result | $((SECONDS - begin_s)) | $log |")
}

# skip NAME RESULT: a row of a step that does not run.
skip() {
  all_passed=no
  echo "$1: $2"
  rows+=("| $1 | $2 | 0 | |")
}

# block TEXT: the text as a block of code, or nothing if it is empty.
block() {
  [ -z "$1" ] || printf '%s\n' "\`\`\`" "$1" "\`\`\`"
}

tests_summary() {
  local log compile_s
  echo "## Tests"
  for log in "$folder"/tests-*.txt; do
    [ -e "$log" ] || continue
    echo "$(basename "$log"): $(tail -n 1 "$log")"
    echo
    block "$(grep -hE '^(FAILED|ERROR) ' "$log" | head -n 12 | cut -c 1-200)"
  done
  if [ -e "$folder/compile.txt" ]; then
    echo
    echo "Compilations: $(tail -n 1 "$folder/compile.txt")."
    compile_s=$(sed -n 's/.*(\([0-9]*\) s by one).*/\1/p' "$folder/compile.txt")
    echo "Estimate: \`pytest -m gpu -n 0\` with an empty cache takes $((${compile_s:-0} + tests_s)) s or more:" \
      "the compilations by one process, and the tests as above."
    block "$(grep -hE '^FAILED ' "$folder/compile.txt" | head -n 12 | cut -c 1-200)"
  fi
}

summary() {
  local name
  name=$(tr '[:upper:] ' '[:lower:]-' <<<"${gpu:-no-gpu}" | tr -cd 'a-z0-9-')
  echo "# decodetax on ${gpu:-a machine without a GPU}"
  echo
  echo "$started UTC, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)$(
    [ -z "$(git status --porcelain --untracked-files=no 2>/dev/null)" ] || echo ", with changes that are not committed"
  ), $SECONDS of at most $total_s s."
  [ -n "$gpu" ] || printf '\n**no GPU**: %s. Nothing was measured.\n' "$no_gpu_because"
  echo
  echo "| step | result | seconds | log |"
  echo "|---|---|---|---|"
  [ "${#rows[@]}" = 0 ] || printf '%s\n' "${rows[@]}"
  if [ -e "$folder/doctor.txt" ]; then
    printf '\n## Doctor\n'
    block "$(tail -n 34 "$folder/doctor.txt")"
  fi
  if [ -n "$gpu" ]; then
    printf '\n## Run\n'
    block "$(tail -n 24 "$folder/run.txt" 2>/dev/null)"
    echo
    tests_summary
    printf '\n## Tuning\n'
    block "$(tail -q -n 2 "$folder"/tune-*.txt 2>/dev/null)"
    printf '\n## Send\n'
    echo "run.json as docs/runs/$name.json, and this page, in a pull request. Send them too if a step failed."
  fi
}

# Stops the command that runs, and ends with the summary of the steps so far.
interrupt() {
  trap '' INT TERM HUP
  all_passed=no
  no_gpu_because=${no_gpu_because:-interrupted}
  rows+=("| interrupted | | | |")
  kill -INT "$job" 2>/dev/null && wait "$job" # timeout passes it on, and kills after kill_after_s
  kill -KILL -- "-$job" 2>/dev/null
  finish
}

finish() {
  trap - EXIT INT TERM HUP
  summary >"$folder/summary.md"
  rm -rf "$cache"
  echo "Written: $folder/summary.md"
  [ -n "$gpu" ] || exit 2
  [ "$all_passed" = yes ] || exit 1
  exit 0
}
trap finish EXIT
trap interrupt INT TERM HUP

ask_gpu='
import torch
properties = torch.cuda.get_device_properties(0)
print(properties.name)
print(properties.total_memory >> 33)
print(torch.cuda.device_count())
'
if within 60 "$folder/gpu.txt" "$python" -c "$ask_gpu"; then
  { read -r gpu && read -r fit && read -r gpus; } < <(tail -n 3 "$folder/gpu.txt")
  echo "GPU: $gpu"
else
  no_gpu_because=$(grep -v '^ ' "$folder/gpu.txt" | tail -n 1)
  no_gpu_because=${no_gpu_because:-PyTorch did not answer}
  echo "no GPU: $no_gpu_because"
fi

cores=$(nproc)
processes=$((fit > cores ? cores : fit > 0 ? fit : 1))
decodetax=("$python" -m decodetax.harness)
pytest=("$python" -m pytest -m gpu -q)

step "doctor" 60 doctor.txt "${decodetax[@]}" doctor
if [ -z "$gpu" ]; then
  for name in "run" "compile tests/gpu" "kernels' tests" "measuring tests" "tune decode_attention" \
    "tune prefill_attention" "tune prefill_matmul" "tuning tests"; do
    skip "$name" "left out: no GPU"
  done
  exit
fi
step "run" 290 run.txt "${decodetax[@]}" run --output "$folder/run.json" --html "$folder/report.html"
if [ -e "$folder/run.json" ] && [ ! -e "$folder/report.html" ]; then
  step "report of what was measured" 20 report.txt "${decodetax[@]}" report "$folder/run.json" \
    --html "$folder/report.html"
fi
step "compile tests/gpu" 100 compile.txt "$python" tests/gpu/compile_first.py --processes "$cores"
step "kernels' tests" 90 tests-kernels.txt "${pytest[@]}" -n "$processes" tests/gpu/test_kernels.py \
  tests/gpu/test_matmul_variants.py tests/gpu/test_prompts.py
step "measuring tests" 80 tests-run.txt "${pytest[@]}" -n 0 tests/gpu/test_run.py
[ "$gpus" -lt 2 ] || step "tests of two GPUs" 150 tests-two-gpus.txt "${pytest[@]}" -n 0 tests/gpu/test_two_gpus.py
for kernel in decode_attention prefill_attention prefill_matmul; do
  step "tune $kernel" 35 "tune-$kernel.txt" "${decodetax[@]}" tune --kernel "$kernel" --time-limit 15 \
    --cache "$folder/tilings"
done
step "tuning tests" 150 tests-tune.txt "${pytest[@]}" -n 0 tests/gpu/test_tune.py
