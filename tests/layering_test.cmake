# cmake -DSOURCE_DIR=<repository> -DWORK=<scratch folder> -P tests/layering_test.cmake
#
# Breaks each rule of tests/layering.cmake once, in a small tree of its own, and looks for the report with path and
# line; a clean tree with one of everything that is allowed has to pass. A checker that reports nothing fails here.
cmake_minimum_required(VERSION 3.25)
set(failures 0)

# Writes the clean tree. Each case then adds or overwrites one file.
function(write_clean_tree)
  file(REMOVE_RECURSE "${WORK}")
  file(WRITE "${WORK}/src/core/base.h" "#pragma once\n#include <vector>\nstruct Base { int width_bytes(); };\n")
  file(WRITE "${WORK}/quant/format.h" "#pragma once\n#include \"src/core/base.h\"\n")
  file(WRITE "${WORK}/kernels/backend.h" "#pragma once\n#include \"quant/format.h\"\n")
  file(WRITE "${WORK}/kernels/target.h" "#pragma once\n")
  file(WRITE "${WORK}/kernels/ops.h" "#pragma once\n#define QT_FOR_EACH_OP(X) \\\n  X(NormFwd) \\\n  X(NormBwd)\n")
  file(WRITE "${WORK}/kernels/cpu/norm.h" "#pragma once\n#include \"kernels/ops.h\"\n")
  file(WRITE "${WORK}/kernels/cpu/norm.cpp" "void run(const NormFwd& op, Context& ctx) {}\n\nvoid run(const NormBwd& op, Context& ctx) {}\n")
  file(WRITE "${WORK}/kernels/null/null.h" "#pragma once\n#include \"kernels/backend.h\"\n")
  file(WRITE "${WORK}/kernels/cuda/norm.cu" "#include <cuda_runtime.h>\n#include \"kernels/cuda/ptx.cuh\"\n// not __CUDA_ARCH__ here\nvoid run(const NormFwd& op, const Context& context) {}\nvoid run(const NormBwd& op, const Context& context) {}\n")
  file(WRITE "${WORK}/kernels/cuda/ptx.cuh" "#pragma once\n#ifdef __CUDACC__\n#endif\n#ifdef QTRAIN_SIM\n#endif\n")
  file(WRITE "${WORK}/kernels/cuda/launch.cuh" "#pragma once\n#ifdef __CUDA_ARCH__\n#endif\n")
  file(WRITE "${WORK}/kernels/sim/sim.cpp" "#include \"kernels/cuda/ptx.cuh\"\n#include <cuda_bf16.h>\n")
  file(WRITE "${WORK}/src/memory/arena.h" "#pragma once\n#include \"kernels/backend.h\"\n#include \"kernels/target.h\"\n")
  file(WRITE "${WORK}/src/io/json.h" "#pragma once\n#include \"src/core/base.h\"\n")
  file(WRITE "${WORK}/src/tokenizer/bpe.h" "#pragma once\n#include \"src/io/json.h\"\n")
  file(WRITE "${WORK}/src/data/shard.h" "#pragma once\n#include \"src/tokenizer/bpe.h\"\n")
  file(WRITE "${WORK}/src/model/config.h" "#pragma once\n")
  file(WRITE "${WORK}/src/model/model.h" "#pragma once\n#include \"src/memory/arena.h\"\n")
  file(WRITE "${WORK}/optim/adamw.h" "#pragma once\n#include \"src/memory/arena.h\"\n")
  file(WRITE "${WORK}/src/options/options.h" "#pragma once\n#include \"src/io/json.h\"\n#include \"src/model/config.h\"\n")
  file(WRITE "${WORK}/src/meter/nvml.h" "#pragma once\n#include \"kernels/backend.h\"\n")
  file(WRITE "${WORK}/src/train/trainer.h" "#pragma once\n#include \"src/model/model.h\"\n#include \"optim/adamw.h\"\n#include \"src/meter/nvml.h\"\n")
  file(WRITE "${WORK}/src/train/log.cpp" "// not printf( here\nint f(char* t) { return std::snprintf(t, 9, \"a\"); }\n")
  file(WRITE "${WORK}/src/plan/planner.h" "#pragma once\n#include \"src/train/trainer.h\"\n#include \"src/options/options.h\"\n")
  file(WRITE "${WORK}/src/convert/export.h" "#pragma once\n#include \"src/plan/planner.h\"\n#include \"src/data/shard.h\"\n")
  file(WRITE "${WORK}/src/watch/report.h" "#pragma once\n#include \"src/plan/planner.h\"\n#include \"src/io/json.h\"\n")
  file(WRITE "${WORK}/src/cli/main.cpp" "#include \"src/convert/export.h\"\n#include \"src/watch/report.h\"\n#include \"kernels/cpu/norm.h\"\nusing namespace std;\n")
  file(WRITE "${WORK}/tests/support/close.h" "#pragma once\n#include \"kernels/cpu/norm.h\"\n")
  file(WRITE "${WORK}/tests/test_ops.cpp" "#include \"tests/support/close.h\"\n")
  file(WRITE "${WORK}/scripts/setup" "#!/usr/bin/env bash\n")
  file(WRITE "${WORK}/build/made.cpp" "#include \"nowhere.h\"\n")
  file(WRITE "${WORK}/docs/memory.md"
       "The `Base` of `src/core/base.h:3` answers `width_bytes()` and `Base::width_bytes(x)`; see `src/core/`,\n"
       "`kernels/{backend,ops}.h`, `kernels/*/norm.*`, `base.h`, `std::regex`, `runs/d4/log.jsonl`, `quant/<name>.h`.\n"
       "\n```\n./scripts/setup --for build && ls data/text.txt\n```\n")
  file(WRITE "${WORK}/README.md" "Type `scripts/setup --for test`.\n")
endfunction()

function(run_checker result output)
  execute_process(COMMAND "${CMAKE_COMMAND}" "-DROOT=${WORK}" -P "${SOURCE_DIR}/tests/layering.cmake"
                  RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE err)
  set(${result} ${code} PARENT_SCOPE)
  set(${output} "${out}${err}" PARENT_SCOPE)
endfunction()

# expect_violation(<file> <content> <line> <words>): the tree with this one file fails with exactly one report,
# "<file>:<line>: ...<words>...".
function(expect_violation file content line words)
  write_clean_tree()
  file(WRITE "${WORK}/${file}" "${content}")
  run_checker(code output)
  string(FIND "${output}" "${file}:${line}: " at)
  string(FIND "${output}" "${words}" words_at)
  string(FIND "${output}" "layering: 1 violations" count_at)
  if(code EQUAL 0 OR at EQUAL -1 OR words_at EQUAL -1 OR count_at EQUAL -1)
    message("not reported: ${file}:${line}: ${words}\nexit ${code}, output:\n${output}\n")
    math(EXPR failures "${failures} + 1")
    set(failures ${failures} PARENT_SCOPE)
  endif()
endfunction()

write_clean_tree()
run_checker(code output)
if(NOT code EQUAL 0 OR NOT output MATCHES "29 sources and 2 documents are clean")
  message("the clean tree was refused, or not read as a whole: ${output}")
  math(EXPR failures "${failures} + 1")
endif()

# Who includes whom: one case per folder, each one step beyond what it may.
set(h "#pragma once\n")
foreach(step
    "src/core/x.h|quant/format.h"         "quant/x.h|kernels/ops.h"            "kernels/x.h|kernels/cpu/norm.h"
    "kernels/x.h|src/memory/arena.h"      "kernels/cpu/x.h|kernels/null/null.h" "kernels/null/x.h|kernels/cpu/norm.h"
    "kernels/cpu/x.h|kernels/cuda/ptx.cuh" "kernels/cuda/x.cuh|kernels/sim/sim.cpp" "kernels/sim/x.h|kernels/cpu/norm.h"
    "src/memory/x.h|kernels/ops.h"        "src/memory/x.h|quant/format.h"      "src/memory/x.h|kernels/null/null.h"
    "src/io/x.h|kernels/target.h"         "src/io/x.h|quant/format.h"          "src/tokenizer/x.h|src/data/shard.h"
    "src/data/x.h|quant/format.h"         "src/model/x.h|optim/adamw.h"        "src/model/x.h|src/io/json.h"
    "src/model/x.h|src/data/shard.h"      "optim/x.h|src/model/model.h"        "optim/x.h|src/io/json.h"
    "src/options/x.h|src/model/model.h"   "src/options/x.h|src/train/trainer.h" "src/meter/x.h|kernels/ops.h"
    "src/meter/x.h|src/options/options.h" "src/train/x.h|kernels/cpu/norm.h"   "src/train/x.h|kernels/null/null.h"
    "src/train/x.h|src/options/options.h" "src/train/x.h|src/plan/planner.h"   "src/train/x.h|src/watch/report.h"
    "src/train/x.h|src/cli/main.cpp"      "src/plan/x.h|src/convert/export.h"  "src/plan/x.h|src/watch/report.h"
    "src/convert/x.h|src/watch/report.h"  "src/convert/x.h|src/cli/main.cpp"   "src/watch/x.h|src/convert/export.h"
    "src/watch/x.h|src/cli/main.cpp")
  string(REGEX MATCH "^([^|]*)\\|(.*)$" matched "${step}")
  get_filename_component(folder "${CMAKE_MATCH_1}" DIRECTORY)
  expect_violation("${CMAKE_MATCH_1}" "${h}\n#include \"${CMAKE_MATCH_2}\"\n" 3 "${folder} may not include \"${CMAKE_MATCH_2}\"")
endforeach()
expect_violation(src/train/x.cpp "#include \"tests/support/close.h\"\n" 1 "nobody includes tests/")
expect_violation(bench/x.cpp "#include \"tests/support/close.h\"\n" 1 "nobody includes tests/")
expect_violation(src/core/x.cpp "#include \"base.h\"\n" 1 "does not exist from the repository root")
expect_violation(src/io/x.cpp "\n\n#include \"src/io/../core/base.h\"\n" 3 "does not exist from the repository root")
expect_violation(src/cli/x.cpp "  #  include \"src/core/gone.h\"  // why; [so\n" 1 "src/core/gone.h")
expect_violation(src/extra/x.h "${h}" 1 "has no rank")
expect_violation(engine/x.cpp "int x;\n" 1 "has no rank")

# CUDA stays where it belongs.
expect_violation(src/train/x.cpp "int a;\n#include <cuda_runtime.h>\n" 2 "CUDA header 'cuda_runtime.h'")
expect_violation(kernels/x.cpp "#include <cublasLt.h>\n" 1 "CUDA header")
expect_violation(tests/x.cpp "#include <cub/cub.cuh>\n" 1 "CUDA header")
expect_violation(kernels/cpu/x.cpp "#include <thrust/sort.h>\n" 1 "CUDA header")
expect_violation(src/train/x.cpp "#include \"nccl.h\"\n" 1 "CUDA header")
expect_violation(kernels/cuda/x.cu "int a;\n\n#ifdef __CUDACC__\n#endif\n" 3 "'__CUDACC__' belongs into")
expect_violation(kernels/cuda/x.cuh "#if __CUDA_ARCH__ >= 900\n#endif\n" 1 "'__CUDA_ARCH__' belongs into")
expect_violation(kernels/cuda/x.cu "int b; int a[QTRAIN_SIM_WARP];\n" 1 "'QTRAIN_SIM_WARP' belongs into")

# Training prints nothing; text in memory and comments are no print.
expect_violation(src/train/x.cpp "int a;\nvoid f() { std::fflush(stdout); }\n" 2 "'stdout' prints")
expect_violation(src/train/x.cpp "\nvoid f() { std::puts(\"a\"); }\n" 2 "'puts(' prints")
expect_violation(src/train/x.h "#pragma once\ninline void f() { printf(\"a\"); }\n" 2 "'printf(' prints")
expect_violation(src/train/x.cpp "void f() {\n\n  std::cout << 1;\n}\n" 3 "'std::cout' prints")

# An op has the same base name on both sides of the device split.
function(expect_op_violation file words)
  write_clean_tree()
  file(WRITE "${WORK}/kernels/cuda/norm.cu" "void run(const NormFwd& op, const Context& context) {}\n")
  file(WRITE "${WORK}/${file}" "void run(const NormBwd& op, const Context& context) {}\n")
  run_checker(code output)
  string(FIND "${output}" "${words}" at)
  string(FIND "${output}" "layering: 1 violations" count_at)
  if(code EQUAL 0 OR at EQUAL -1 OR count_at EQUAL -1)
    message("not reported: ${words}\nexit ${code}, output:\n${output}\n")
    math(EXPR failures "${failures} + 1")
    set(failures ${failures} PARENT_SCOPE)
  endif()
endfunction()
expect_op_violation(kernels/cuda/norm_bwd.cu
                    "kernels/cpu/norm.cpp:1: the op NormBwd has two base names: kernels/cpu/norm.cpp and kernels/cuda/norm_bwd.cu")
expect_op_violation(tests/norm.cpp "kernels/ops.h:1: no file of kernels/cuda has run(const NormBwd&, ...)")
expect_violation(kernels/ops.h "#pragma once\n" 1 "has no QT_FOR_EACH_OP")

# Length: 600 lines pass, 601 do not, in every kind of file.
string(REPEAT "# line\n" 601 long_script)
string(REPEAT "// line; with [ and ]\n" 601 long_source)
foreach(file src/core/x.cpp kernels/cuda/x.cu)
  expect_violation(${file} "${long_source}" 601 "601 lines; the limit is 600")
endforeach()
foreach(file cmake/X.cmake tools/x.py scripts/x .ci/run tests/CMakeLists.txt)
  expect_violation(${file} "${long_script}" 601 "601 lines; the limit is 600")
endforeach()
write_clean_tree()
string(REPEAT "// line\n" 600 longest)
file(WRITE "${WORK}/src/core/x.cpp" "${longest}")
run_checker(code output)
if(NOT code EQUAL 0 OR NOT output MATCHES "src/core/x.cpp: 600 lines; notice")
  message("600 lines should pass with a notice: exit ${code}, ${output}")
  math(EXPR failures "${failures} + 1")
endif()

# Folders: the limit passes, one file more does not.
function(expect_full_folder folder limit present)
  write_clean_tree()
  math(EXPR more "${limit} - ${present}")
  foreach(i RANGE 1 ${more})
    file(WRITE "${WORK}/${folder}/filler${i}.txt" "x\n")
  endforeach()
  run_checker(code output)
  set(full "${output}")
  file(WRITE "${WORK}/${folder}/one_too_many.txt" "x\n")
  run_checker(code_beyond output)
  math(EXPR beyond "${limit} + 1")
  if(NOT code EQUAL 0 OR code_beyond EQUAL 0 OR NOT output MATCHES "${folder}:1: ${beyond} files; the limit of this folder is ${limit}")
    message("the limit of ${folder}: exit ${code} and ${code_beyond}, output:\n${full}\n${output}\n")
    math(EXPR failures "${failures} + 1")
    set(failures ${failures} PARENT_SCOPE)
  endif()
endfunction()
expect_full_folder(src/io 40 1)
expect_full_folder(kernels/cuda 55 3)
expect_full_folder(tests/support 55 1)

expect_violation(src/io/x.h "${h}\n  using namespace std::literals;\n" 3 "'using namespace std::literals'")

# Documents name what exists.
expect_violation(docs/x.md "a\nin `src/core/gone.cpp`\n" 2 "'src/core/gone.cpp' does not exist")
expect_violation(docs/x.md "`kernels/{ops,gone}.h`\n" 1 "'kernels/gone.h' does not exist")
expect_violation(docs/x.md "`kernels/*/gone.*`\n" 1 "does not exist")
expect_violation(docs/x.md "`gone.h` (and `base.h`)\n" 1 "'gone.h' does not exist")
expect_violation(docs/x.md "\n\n`Base` has `gone_bytes()`\n" 3 "nothing is named 'gone_bytes'")
expect_violation(docs/x.md "`bytes()`\n" 1 "nothing is named 'bytes'")
expect_violation(docs/x.md "`Base::gone`\n" 1 "nothing is named 'gone'")
expect_violation(README.md "a\n\n```\nscripts/gone --for build\n```\n" 4 "'scripts/gone' does not exist")
expect_violation(CONTRIBUTING.md "run `cmake -P tests/gone.cmake`\n" 1 "'tests/gone.cmake' does not exist")

# All violations are reported, not only the first.
write_clean_tree()
file(WRITE "${WORK}/src/core/x.h" "#include \"quant/format.h\"\nusing namespace std;\n#include \"gone.h\"\n")
file(WRITE "${WORK}/docs/x.md" "`vanished()`\n")
run_checker(code output)
foreach(where src/core/x.h:1 src/core/x.h:2 src/core/x.h:3 docs/x.md:1 "4 violations")
  string(FIND "${output}" "${where}" at)
  if(code EQUAL 0 OR at EQUAL -1)
    message("several violations at once: no '${where}' in\n${output}")
    math(EXPR failures "${failures} + 1")
  endif()
endforeach()

file(REMOVE_RECURSE "${WORK}")
if(failures GREATER 0)
  message(FATAL_ERROR "layering_test: ${failures} cases failed")
endif()
message("layering_test: every rule was seen to fail")
