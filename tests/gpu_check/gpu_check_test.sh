#!/usr/bin/env bash
# gpu_check_test.sh QTRAIN: scripts/gpu-check as it would run on a card, without one. What only such a machine has is
# played: nvidia-smi, ctest, compute-sanitizer, PyTorch and the benchmarks by scripts that say what they were asked for,
# d32 on the card by a d2 on the cpu. A promise that is broken must fail its part, and only that.
set -euo pipefail
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
qtrain=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
checkout=$work/checkout
build=$checkout/build/cuda-release
mkdir -p "$checkout/scripts" "$checkout/tools" "$build/bench" "$build/tests" "$work/bin"
cp "$source_dir/scripts/gpu-check" "$source_dir/scripts/gpu-parts" "$checkout/scripts/"
export GPU_CHECK_PLAY=$work/play # what is to go wrong
mkdir "$GPU_CHECK_PLAY"

script() { cat >"$1"; chmod +x "$1"; }

# Memory is in use while a run's command line is there. The pattern does not find the grep itself.
script "$work/bin/nvidia-smi" <<'PLAY'
#!/usr/bin/env bash
case "$*" in
  -L) echo "GPU 0: Played Card (UUID: GPU-0)" ;;
  *memory.used*)
    used=7
    if grep -lsaE 'qtrain.*gpu-chec[k]-run' /proc/[0-9]*/cmdline >/dev/null; then used=$(cat "$GPU_CHECK_PLAY/used" 2>/dev/null || echo 20); fi
    echo "$used" ;;
  *compute_cap*) echo 8.9 ;;
  *memory.total*) echo 12282 ;;
  *name*) echo "Played Card" ;;
  *) echo 1 ;;
esac
PLAY

# Small, on the cpu, and long enough to be seen. A run of three steps is slow enough to be killed in its third.
script "$build/qtrain" <<PLAY
#!/usr/bin/env bash
words=() small=(--seq-len 64 --batch-tokens 256 --eval-tokens 256)
[[ " \$* " != *" --steps 3 "* ]] || small=(--seq-len 64 --batch-tokens 32768 --eval-tokens 256)
[[ " \$* " != " tokenize "* ]] || small=()
while [ "\$#" -gt 0 ]; do
  case "\$1" in
    --arch | --vram | --batch-tokens | --eval-tokens) shift ;;
    --device) words+=(--device cpu); shift ;;
    --model) words+=(--model d2); shift ;;
    --vocab-size) words+=(--vocab-size "\$((\$2 > 4096 ? 1024 : 300))"); shift ;;
    *) words+=("\$1") ;;
  esac
  shift
done
if [ -e "\$GPU_CHECK_PLAY/drift" ]; then
  words+=(--seed "\$(cat "\$GPU_CHECK_PLAY/drift")")
  echo 2 >"\$GPU_CHECK_PLAY/drift"
fi
case "\${words[0]}" in
  plan | tokenize) ;;
  *) sleep 0.7 ;;
esac
exec "$qtrain" "\${words[@]}" "\${small[@]}" --threads 1
PLAY

for name in copy gemm attention loss ops step; do
  script "$build/bench/bench_$name" <<'PLAY'
#!/usr/bin/env bash
name=$(basename "$0")
echo "$name was asked for: $*"
[ ! -e "$GPU_CHECK_PLAY/slow-$name" ] || sleep 30
[ ! -e "$GPU_CHECK_PLAY/break-$name" ]
PLAY
done
script "$work/bin/ctest" <<'PLAY'
#!/usr/bin/env bash
echo "1/1 Test #1: test_ops_cuda ....   $(cat "$GPU_CHECK_PLAY/verdict" 2>/dev/null || echo Passed)    0.01 sec"
PLAY
for name in compute-sanitizer python; do
  script "$work/bin/$name" <<'PLAY'
#!/usr/bin/env bash
echo "$(basename "$0") was asked for: $*"
PLAY
done
script "$build/tests/test_ops_cuda" <<'PLAY'
#!/usr/bin/env bash
case "$*" in
  *list_tests*) printf 'Floats/Op.  # of floats\n  Adds/f32  # GetParam() = f32\n  Faults/f32  # GetParam() = f32\n' ;;
  *Faults*) echo "an illegal memory access"; exit 1 ;;
esac
PLAY

cat "$source_dir"/docs/*.md >"$work/text.txt"

report=$checkout/build/gpu-check/report.txt
# check CODE OPTIONS...: the exit status must be this one.
check() {
  local want=$1 code=0
  shift
  PATH=$work/bin:$PATH PYTHON=python "$checkout/scripts/gpu-check" "$@" >"$work/output" 2>&1 || code=$?
  if [ "$code" != "$want" ]; then
    echo "gpu-check $*: expected exit $want, got $code:"
    cat "$work/output"
    failures=$((failures + 1))
  fi
}
# says PATTERN [FILE]: the report has such a line.
says() {
  if ! grep -qE "$1" "${2:-$report}"; then
    echo "no line of the report matches '$1':"
    cat "${2:-$report}"
    failures=$((failures + 1))
  fi
}

# Everything kept: every part passes, and its tables say so.
mkdir "$work/runs"
check 0 --data "$work/text.txt" --runs "$work/runs" --seconds 1 --parts tests,memory,bits,bench,steps,peers,learn,suite,sanitize
for part in tests memory bits bench steps peers learn suite sanitize; do says "^$part +passed +exit +0"; done
says '^nf4, 12 GiB +20 .* ok$'
says '^nf4, 12 GiB, whole step +1 .* ok$'
says '^16-bit weights, 12 GiB +3 .* ok$'
[ "$(grep -c ' ok$' "$report")" -eq 5 ] || says 'five rows are ok'
hash=$(sed -n 's/^not touched  *//p' "$report")
says "^again +$hash\$"
says "^killed after step 2, and continued +$hash\$"
says 'from the checkpoint of step [12]|continu|resum'
says '^ +[0-9]+ +[0-9.]+ +[0-9.]+ +[-+][0-9.]+$'
says '^validation, none: '
says 'bench_gemm was asked for: --device cuda --arch sm_89 --models 12,20,32'
says 'bench_step was asked for: .*--model d32 --quant nf4 --ckpt-activations --vram 12GiB'
says 'python was asked for: tools/torch_twin.py .*--depth 20 '
says 'compute-sanitizer was asked for: --tool racecheck'

# More memory than planned; then a benchmark that fails, and the part after it runs all the same.
echo 400 >"$GPU_CHECK_PLAY/used"
touch "$GPU_CHECK_PLAY/break-bench_gemm"
check 1 --parts memory,bench,steps --steps 2 --runs "$work/runs"
says '^nf4, 8 GiB .* FAILED$'
says '^memory +FAILED'
says '^bench +FAILED'
says 'bench_ops was asked for'
says '^steps +passed'
rm "$GPU_CHECK_PLAY"/*

# A run that is not the same the second time; a test that did not run; a part that takes too long.
echo 1 >"$GPU_CHECK_PLAY/drift"
echo '***Skipped' >"$GPU_CHECK_PLAY/verdict"
touch "$GPU_CHECK_PLAY/slow-bench_copy"
check 1 --data "$work/text.txt" --parts bits,tests,bench --budget bench=1
says '^bits +FAILED'
says '^tests +FAILED'
says 'FAILS Floats/Op.Faults/f32'
says '^bench +OUT OF TIME'
rm "$GPU_CHECK_PLAY"/*

check 1 --parts learn
says 'learning needs a text'
check 2 --parts nothing
check 2 --models d12
check 2 --budget bench=soon
check 2 --data "$work/there-is-none"
rm "$build/qtrain"
check 1 --parts memory
says "run the part 'build' first"
if [ "$failures" -gt 0 ]; then
  echo "$failures failures"
  exit 1
fi
echo "gpu-check keeps what it promises"
