# Compile options and the helper that makes one library per layer.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
find_program(QTRAIN_CCACHE ccache)
if(QTRAIN_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${QTRAIN_CCACHE})
endif()

if(QTRAIN_FUZZ AND NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "QTRAIN_FUZZ needs clang: -DCMAKE_CXX_COMPILER=clang++, or the preset 'fuzz'")
endif()

# Include path, warnings and sanitizers that every target of the project is compiled with.
function(qtrain_compile_options target)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  # No contraction: a * b + c must round twice wherever the bits are promised (docs/numerics.md). Fused
  # multiply-adds are written out where they are wanted.
  # Of C++ only: nvcc takes these by other names (cmake/QtrainCuda.cmake).
  set(options -Wall -Wextra -Wshadow -Wno-missing-field-initializers -ffp-contract=off)
  if(QTRAIN_WERROR)
    list(APPEND options -Werror)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # g++ 12 sees overlapping copies in every "text" + std::string (GCC bug 105651, mended in 13).
    list(APPEND options -Wno-restrict)
  elseif(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # g++ 13 takes a reference into a document for one to the text that only names the place in error messages.
    list(APPEND options -Wno-dangling-reference)
  endif()
  if(QTRAIN_SANITIZE)
    list(APPEND options -fsanitize=${QTRAIN_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
    target_link_options(${target} PUBLIC -fsanitize=${QTRAIN_SANITIZE})
  endif()
  if(QTRAIN_FUZZ)
    # The code under test reports which branches an input took; the fuzzer's own main() comes with its target.
    list(APPEND options -fsanitize=fuzzer-no-link)
  endif()
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${options}>")
endfunction()

# qtrain_layer(<name> FOLDERS <folder>... [EXCLUDE <file>...] LINKS <target>...): library qtrain_<name> of all .cpp files
# of the folders but the excluded ones.
function(qtrain_layer name)
  cmake_parse_arguments(arg "" "" "FOLDERS;EXCLUDE;LINKS" ${ARGN})
  set(sources "")
  foreach(folder IN LISTS arg_FOLDERS)
    file(GLOB found CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${folder}/*.cpp)
    list(APPEND sources ${found})
  endforeach()
  foreach(file IN LISTS arg_EXCLUDE)
    list(REMOVE_ITEM sources ${PROJECT_SOURCE_DIR}/${file})
  endforeach()
  if(sources)
    add_library(qtrain_${name} STATIC ${sources})
    qtrain_compile_options(qtrain_${name})
    target_link_libraries(qtrain_${name} PUBLIC ${arg_LINKS})
  else()
    add_library(qtrain_${name} INTERFACE)
    target_include_directories(qtrain_${name} INTERFACE ${PROJECT_SOURCE_DIR})
    target_link_libraries(qtrain_${name} INTERFACE ${arg_LINKS})
  endif()
  add_library(qtrain::${name} ALIAS qtrain_${name})
endfunction()
