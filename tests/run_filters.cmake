# cmake -DPROGRAM=<test program> -DFILTERS=<filter>:<filter>... -P tests/run_filters.cmake
#
# Runs the tests that any of these gtest filters names. A filter that names none fails: an op renamed would otherwise
# drop out of the run unseen.
cmake_minimum_required(VERSION 3.25)
string(REPLACE ":" ";" filters "${FILTERS}")
foreach(filter IN LISTS filters)
  execute_process(COMMAND "${PROGRAM}" --gtest_list_tests "--gtest_filter=${filter}"
                  OUTPUT_VARIABLE listed RESULT_VARIABLE code)
  if(NOT code EQUAL 0 OR NOT listed MATCHES "\n  [^ ]")
    message(FATAL_ERROR "no test is named '${filter}'")
  endif()
endforeach()
execute_process(COMMAND "${PROGRAM}" --gtest_brief=1 "--gtest_filter=${FILTERS}" RESULT_VARIABLE code)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} ended with ${code}")
endif()
