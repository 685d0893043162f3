#!/usr/bin/env bash
# gate.sh TABLE LOGS PTX...: what the compiler made of the kernels.
#
# LOGS is a folder with what ptxas said of each object (*.ptxas, written by cmake/log_ptxas.sh as the library is built).
# For every architecture: no kernel of ours keeps anything in local memory (spilled registers, arrays with a dynamic
# index). What else a card could refuse is not for here: shared memory is dynamic, static_asserts and prepare_launch()
# bound it, and 255 registers, the most there are, fit blocks of 256 threads; larger ones say __launch_bounds__, by which
# ptxas bounds them. In the PTX files, each kernel that TABLE
# names has at least so many of an instruction, in every instantiation. At least, not exactly: how far a loop is unrolled
# is the compiler's choice and changes with its version; that one step of the inner loop has its instructions is ours.
#
# Exit 0: all hold; 1: the violations, one a line.
set -euo pipefail
table=$1
logs=$2
shift 2
failed=0

# Kernels of ours only: the vendor's libraries look after theirs.
find "$logs" -name '*.ptxas' -print0 | sort -z | xargs -0 -r cat | awk '
  /Compiling entry function/ {
    split($0, part, "\047"); mangled = part[2]; arch = part[4]
    ours = mangled ~ /qt4cuda/ && mangled ~ /_kernel/ && mangled !~ /3cub/
    at = arch ": " mangled
    if (ours) { ++kernels; archs[arch] = 1 }
    next
  }
  # The sine and cosine of large angles reduce them through a small array, in the library. It runs once in a run.
  ours && /bytes stack frame/ && mangled ~ /rope_table_kernel/ && $5 + $9 == 0 { next }
  ours && /bytes stack frame/ && ($1 > 0 || $5 > 0 || $9 > 0) { print at ": " $0; bad = 1 }
  ours && /: Used [0-9]+ registers/ {
    match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5) + 0
    if (registers > most) { most = registers; most_at = at }
  }
  END {
    if (kernels == 0) { print "ptxas said nothing of a kernel of ours"; exit 1 }
    list = ""
    for (a in archs) list = list " " a
    print kernels " kernels for" list "; most registers: " most ", " most_at
    exit bad
  }' || failed=1

awk -v table="$table" '
  BEGIN {
    while ((getline line < table) > 0) {
      if (line ~ /^ *(#|$)/) continue
      split(line, f, " ")
      ++rules; kernel[rules] = f[1]; instruction[rules] = f[2]; least[rules] = f[3]
    }
  }
  function close_entry(   r) {
    for (r = 1; r <= rules && entry != ""; ++r) {
      if (entry !~ ("[0-9]" kernel[r])) continue
      ++met[r]
      if (count[r] + 0 < least[r]) {
        print entry ": " count[r] + 0 " " instruction[r] ", expected at least " least[r]
        bad = 1
      }
    }
    entry = ""
    split("", count)
  }
  /\.entry / { close_entry(); match($0, /\.entry [^( ]*/); entry = substr($0, RSTART + 7, RLENGTH - 7) }
  entry != "" { for (r = 1; r <= rules; ++r) if (index($0, instruction[r]) > 0) ++count[r] }
  END {
    close_entry()
    for (r = 1; r <= rules; ++r) if (!met[r]) { print "no kernel " kernel[r] " in the PTX"; bad = 1 }
    print rules " counts of instructions looked at"
    exit bad
  }' "$@" || failed=1
exit "$failed"
