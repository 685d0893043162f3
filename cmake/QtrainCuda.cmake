# Finds out whether CUDA code can be built here: sets QTRAIN_HAVE_CUDA and says so in one line.
#
# AUTO never breaks a build: without a working compiler and toolkit it is the cpu backend. ON insists, OFF does not
# look. The language is enabled only where the tree has CUDA sources to compile.
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
  if(CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND)
    set(QTRAIN_HAVE_CUDA ON)
    set(cuda_story "${CMAKE_CUDA_COMPILER}, toolkit ${CUDAToolkit_VERSION}")
  elseif(QTRAIN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "QTRAIN_CUDA=ON, but no working CUDA compiler with its toolkit was found. Put nvcc on the PATH "
                        "or set CMAKE_CUDA_COMPILER; QTRAIN_CUDA=OFF builds for the CPU.")
  else()
    set(cuda_story "no working CUDA compiler found")
  endif()
endif()
file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu)
if(NOT cuda_sources)
  string(APPEND cuda_story "; this tree has no CUDA sources, so only the cpu backend is built")
elseif(QTRAIN_HAVE_CUDA)
  # Before the language is enabled, which would choose an old default. Not "native": the machine that compiles may
  # have no card. Plain numbers: CMake 3.25 knows no others.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 86 89 90)
  endif()
  enable_language(CUDA)
endif()
message(STATUS "qtrain: CUDA ${QTRAIN_HAVE_CUDA} (QTRAIN_CUDA=${QTRAIN_CUDA}: ${cuda_story})")
