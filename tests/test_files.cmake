# Which files of tests/ are built. A file without a line in tests/CMakeLists.txt, and a line without its file, end the
# configuration: a test that is not built would be green for good. tests/test_files_test.cmake breaks each rule.

# qtrain_built_from(<file>...): these files of tests/ exist and are built. The end of this file compares them with the folders.
function(qtrain_built_from)
  foreach(file IN LISTS ARGN)
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
      message(FATAL_ERROR "tests/${file} does not exist, and a line of tests/CMakeLists.txt builds it")
    endif()
    set_property(GLOBAL APPEND PROPERTY qtrain_test_files ${file})
  endforeach()
endfunction()

# qtrain_test_target(<name>): ends the configuration where no line before has made this test.
function(qtrain_test_target name)
  if(NOT TARGET ${name})
    message(FATAL_ERROR "tests/CMakeLists.txt names the test '${name}', which no line before it builds")
  endif()
endfunction()

# qtrain_check_test_files(): last, when all lines have been read.
function(qtrain_check_test_files)
  get_property(built GLOBAL PROPERTY qtrain_test_files)
  file(GLOB found CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/test_*.cpp
       ${CMAKE_CURRENT_SOURCE_DIR}/*/test_*.cpp ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/fuzz_*.cpp)
  foreach(file IN LISTS found)
    if(NOT file IN_LIST built)
      message(FATAL_ERROR "tests/${file} is built by no line of tests/CMakeLists.txt: add one")
    endif()
  endforeach()
endfunction()
