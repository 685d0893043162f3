# Finds out whether CUDA code can be built here, sets QTRAIN_HAVE_CUDA, says so in one line, and makes the library.
#
# AUTO never breaks a build: without a working compiler and toolkit it is the cpu backend. ON insists, OFF does not
# look.
if(NOT QTRAIN_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "QTRAIN_CUDA is '${QTRAIN_CUDA}'; it takes AUTO, ON or OFF")
endif()
set(QTRAIN_HAVE_CUDA OFF)
set(cuda_story "not looked for")
if(NOT QTRAIN_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)  # compiles a small project: a compiler that does not work counts as none
  if(CMAKE_CUDA_COMPILER)
    find_package(CUDAToolkit QUIET)
  endif()
  if(NOT CMAKE_CUDA_COMPILER OR NOT CUDAToolkit_FOUND)
    set(cuda_story "no working CUDA compiler found")
  elseif(CUDAToolkit_VERSION VERSION_LESS 12.0)
    set(cuda_story "toolkit ${CUDAToolkit_VERSION} is too old, 12.0 knows C++20")
  elseif(NOT TARGET CUDA::cudart_static OR NOT TARGET CUDA::cublasLt)
    set(cuda_story "toolkit ${CUDAToolkit_VERSION} without cudart_static or cublasLt")
  else()
    set(QTRAIN_HAVE_CUDA ON)
    set(cuda_story "${CMAKE_CUDA_COMPILER}, toolkit ${CUDAToolkit_VERSION}")
    if(CUDAToolkit_VERSION VERSION_LESS 12.8)
      string(APPEND cuda_story " (no code of its own for sm_120: needs 12.8)")
    endif()
  endif()
  if(QTRAIN_CUDA STREQUAL "ON" AND NOT QTRAIN_HAVE_CUDA)
    message(FATAL_ERROR "QTRAIN_CUDA=ON, but ${cuda_story}. Put nvcc of a whole toolkit on the PATH or set "
                        "CMAKE_CUDA_COMPILER; QTRAIN_CUDA=OFF builds for the CPU.")
  endif()
endif()
if(QTRAIN_HAVE_CUDA)
  # Before the language is enabled, which would choose an old default. Not "native": the machine that compiles may
  # have no card. 90 and 120 also as PTX, from which a driver compiles for the cards between and behind: 10.0, 10.3 and
  # 11.0, and those that do not exist yet.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    if(CUDAToolkit_VERSION VERSION_LESS 12.8)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90)
    else()
      set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90 120)
    endif()
  endif()
  if(QTRAIN_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${QTRAIN_CCACHE})
  endif()
  enable_language(CUDA)
  # The standard is that of C++ (cmake/QtrainOptions.cmake), and CMake before 3.26 cannot ask nvcc for it.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
endif()
message(STATUS "qtrain: CUDA ${QTRAIN_HAVE_CUDA} (QTRAIN_CUDA=${QTRAIN_CUDA}: ${cuda_story})")

# How device code is compiled, wherever that happens. The numbers are the host's: no contraction, no approximations.
# fmt 9 leaves constexpr out under nvcc unless told otherwise, and then refuses its own format strings.
set(QTRAIN_CUDA_FLAGS --expt-relaxed-constexpr --fmad=false -DFMT_USE_CONSTEXPR=1
                      "-Xcompiler=-Wall,-Wextra,-Wshadow,-Wno-missing-field-initializers,-ffp-contract=off")

# qtrain_cuda_library(): library qtrain_cuda of kernels/cuda. It defines make_cuda_backend, as qtrain_sim does: a
# program links one of the two.
function(qtrain_cuda_library)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cpp)
  add_library(qtrain_cuda STATIC ${sources})
  qtrain_compile_options(qtrain_cuda)
  target_compile_options(qtrain_cuda PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:${QTRAIN_CUDA_FLAGS}>"
    "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${QTRAIN_WERROR}>>:SHELL:-Werror all-warnings>")
  # What ptxas says of each kernel is kept for the compile gate (tests/cuda_gate).
  target_compile_options(qtrain_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-v>)
  set_target_properties(qtrain_cuda PROPERTIES
    CUDA_COMPILER_LAUNCHER "${PROJECT_SOURCE_DIR}/cmake/log_ptxas.sh;${CMAKE_CUDA_COMPILER_LAUNCHER}")
  target_link_libraries(qtrain_cuda PUBLIC qtrain_kernels CUDA::cudart_static CUDA::cublasLt)
  add_library(qtrain::cuda ALIAS qtrain_cuda)
endfunction()

# qtrain_cuda_ptx(<target> <file of kernels/cuda>...): objects that are the PTX of these sources, for the oldest
# architecture that a kernel may be written for.
function(qtrain_cuda_ptx target)
  list(TRANSFORM ARGN PREPEND ${PROJECT_SOURCE_DIR}/kernels/cuda/)
  add_library(${target} OBJECT ${ARGN})
  qtrain_compile_options(${target})
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${QTRAIN_CUDA_FLAGS}>")
  set_target_properties(${target} PROPERTIES CUDA_PTX_COMPILATION ON CUDA_ARCHITECTURES 80-virtual)
  target_link_libraries(${target} PRIVATE qtrain_kernels)
endfunction()
