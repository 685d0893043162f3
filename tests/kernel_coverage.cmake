# cmake -DROOT=<tree> -DLAUNCHES=<folder> -DNOTES=<file>:<file>... -P tests/kernel_coverage.cmake
#
# Every kernel that kernels/cuda defines has run on the simulator, and was launched under its own name. The names of
# launched kernels lie in these files of LAUNCHES, one a line, where the tests before this one left them
# (QTRAIN_SIM_LAUNCHES, kernels/sim/sim.h). What else lies there is of tests that are no more.
cmake_minimum_required(VERSION 3.25)
string(REPLACE ":" ";" files "${NOTES}")
set(launched "")
foreach(file IN LISTS files)
  if(NOT EXISTS "${LAUNCHES}/${file}")
    message(FATAL_ERROR "no test has left ${LAUNCHES}/${file}")
  endif()
  file(STRINGS "${LAUNCHES}/${file}" names)
  list(APPEND launched ${names})
endforeach()
list(REMOVE_DUPLICATES launched)

file(GLOB sources "${ROOT}/kernels/cuda/*.cu" "${ROOT}/kernels/cuda/*.cuh")
set(defined "")
foreach(source IN LISTS sources)
  file(READ "${source}" text)
  string(REGEX MATCHALL "__global__[^;{}]*[ \n]([a-z0-9_]+_kernel)\\(" found "${text}")
  foreach(definition IN LISTS found)
    string(REGEX MATCH "([a-z0-9_]+_kernel)\\($" name "${definition}")
    list(APPEND defined "${CMAKE_MATCH_1}")
  endforeach()
endforeach()
list(REMOVE_DUPLICATES defined)

set(never ${defined})
list(REMOVE_ITEM never ${launched})
set(unknown ${launched})
list(REMOVE_ITEM unknown ${defined})
list(LENGTH defined count)
if(count EQUAL 0 OR never OR unknown)
  message(FATAL_ERROR "of ${count} kernels these never ran: '${never}'; launched under a name that is none: '${unknown}'")
endif()
message("all ${count} kernels of kernels/cuda ran")
