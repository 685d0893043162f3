#!/usr/bin/env bash
# gate_test.sh NVCC: gate.sh reports a kernel that spills, one without its instruction, and one that is not there, and
# passes where nothing is wrong.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
nvcc=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/kernels.cu" << 'CUDA'
namespace qt::cuda {
__global__ void sound_kernel(float* x) {
  asm volatile("cp.async.commit_group;" ::: "memory");
  x[threadIdx.x] += 1;
}
#ifdef SPILLS
// The indices are not known at compile time: the array lives in local memory.
__global__ void spilling_kernel(float* x, const int* at) {
  float kept[64] = {};
  for (int i = 0; i < 64; ++i) kept[at[i] & 63] += x[i];
  x[threadIdx.x] = kept[at[threadIdx.x] & 63];
}
#endif
}  // namespace qt::cuda
CUDA
mkdir "$work/sound" "$work/spills" "$work/nothing"
log=$here/../../cmake/log_ptxas.sh
"$log" "$nvcc" -Xptxas -v -cubin -arch=sm_80 -o "$work/sound/kernels.o" "$work/kernels.cu"
"$log" "$nvcc" -DSPILLS -Xptxas -v -cubin -arch=sm_80 -o "$work/spills/kernels.o" "$work/kernels.cu"
"$nvcc" -ptx -arch=compute_80 -o "$work/kernels.ptx" "$work/kernels.cu"
failures=0

# expect CODE WORDS TABLE LOGS
expect() {
  local code=0 output
  output=$("$here/gate.sh" "$3" "$4" "$work/kernels.ptx" 2>&1) || code=$?
  if [ "$code" != "$1" ] || [[ "$output" != *"$2"* ]]; then
    printf 'expected exit %s and "%s", got exit %s and:\n%s\n' "$1" "$2" "$code" "$output"
    failures=$((failures + 1))
  fi
}
echo "sound_kernel cp.async 1" > "$work/right"
echo "sound_kernel mma.sync 1" > "$work/without"
echo "sound_kernel cp.async 2" > "$work/more"
echo "absent_kernel cp.async 1" > "$work/absent"
expect 0 "1 kernels for sm_80" "$work/right" "$work/sound"
expect 1 "sm_80: _ZN2qt4cuda15spilling_kernel" "$work/right" "$work/spills"
expect 1 "bytes stack frame" "$work/right" "$work/spills"
expect 1 "ptxas said nothing of a kernel of ours" "$work/right" "$work/nothing"
expect 1 "0 mma.sync, expected at least 1" "$work/without" "$work/sound"
expect 1 "1 cp.async, expected at least 2" "$work/more" "$work/sound"
expect 1 "no kernel absent_kernel" "$work/absent" "$work/sound"
[ "$failures" = 0 ] || exit 1
echo "the gate was seen to fail for each reason"
