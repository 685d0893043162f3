#!/usr/bin/env bash
# log_ptxas.sh COMPILER ARGUMENT...: runs nvcc, and keeps what ptxas says of the kernels (-Xptxas -v) beside the object as
# OBJECT.ptxas, for tests/cuda_gate/gate.sh. All else that is said goes on to the user.
set -uo pipefail
object=
previous=
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
said=$(mktemp)
"$@" 2> "$said"
code=$?
kept='^ptxas info|^ +[0-9]+ bytes stack frame|^ *$'
[ -z "$object" ] || grep -E "$kept" "$said" > "$object.ptxas"
grep -vE "$kept" "$said" >&2
rm -f "$said"
exit "$code"
