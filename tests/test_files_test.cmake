# cmake -DSOURCE_DIR=<repository> -DWORK=<scratch folder> -P tests/test_files_test.cmake
#
# Breaks each rule of tests/test_files.cmake once, in a small project of its own, and looks for the message.
cmake_minimum_required(VERSION 3.25)
set(failures 0)

# expect(<name> <lines of CMakeLists.txt> <message>): configures a project with the files room/test_a.cpp and
# fuzz/fuzz_b.cpp; an empty message means that it has to pass.
function(expect name lines message)
  file(REMOVE_RECURSE "${WORK}")
  file(WRITE "${WORK}/room/test_a.cpp" "int a;\n")
  file(WRITE "${WORK}/fuzz/fuzz_b.cpp" "int b;\n")
  file(WRITE "${WORK}/CMakeLists.txt" "cmake_minimum_required(VERSION 3.25)\nproject(rules LANGUAGES NONE)\n"
       "include(${SOURCE_DIR}/tests/test_files.cmake)\n${lines}\nqtrain_check_test_files()\n")
  execute_process(COMMAND "${CMAKE_COMMAND}" -S "${WORK}" -B "${WORK}/build" RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE err)
  string(REGEX REPLACE "[ \n]+" " " said "${out}${err}")
  set(as_expected FALSE)
  if(message STREQUAL "")
    if(code EQUAL 0)
      set(as_expected TRUE)
    endif()
  elseif(NOT code EQUAL 0 AND said MATCHES "${message}")
    set(as_expected TRUE)
  endif()
  if(NOT as_expected)
    message("${name}: exit ${code}, expected '${message}':\n${out}${err}")
    math(EXPR failures "${failures} + 1")
    set(failures ${failures} PARENT_SCOPE)
  endif()
endfunction()

set(all "qtrain_built_from(room/test_a.cpp fuzz/fuzz_b.cpp)\nadd_custom_target(test_a)\n")
expect("every file has its line" "${all}qtrain_test_target(test_a)" "")
expect("a line without its file" "${all}qtrain_built_from(room/test_gone.cpp)" "tests/room/test_gone.cpp does not exist")
expect("a test without a line" "qtrain_built_from(fuzz/fuzz_b.cpp)" "tests/room/test_a.cpp is built by no line")
expect("a fuzz target without a line" "qtrain_built_from(room/test_a.cpp)" "tests/fuzz/fuzz_b.cpp is built by no line")
expect("a target that no line made" "${all}qtrain_test_target(test_b)" "names the test 'test_b', which no line before it builds")

file(REMOVE_RECURSE "${WORK}")
if(failures GREATER 0)
  message(FATAL_ERROR "test_files_test: ${failures} cases failed")
endif()
message("test_files_test: every rule was seen to fail")
