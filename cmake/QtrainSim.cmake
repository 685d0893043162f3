# The simulator: kernels/cuda's sources, compiled by the host compiler against kernels/sim. Files that call the
# vendor's libraries have a twin in kernels/sim under the same base name, which stands in for them.
if(NOT QTRAIN_DEPS)
  find_package(Boost 1.74 REQUIRED COMPONENTS context)
endif()
file(GLOB sim_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/sim/*.cpp)
file(GLOB kernel_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu)
foreach(source IN LISTS kernel_sources)
  get_filename_component(name ${source} NAME_WE)
  if(EXISTS ${PROJECT_SOURCE_DIR}/kernels/sim/${name}.cpp)
    continue()
  endif()
  # A file of its own for each: the language of a source is the same for all targets of a folder.
  set(wrapper ${PROJECT_BINARY_DIR}/sim/${name}.cpp)
  file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"kernels/cuda/${name}.cu\"\n")
  list(APPEND sim_sources ${wrapper})
endforeach()
add_library(qtrain_sim STATIC ${sim_sources})
qtrain_compile_options(qtrain_sim)
target_compile_options(qtrain_sim PUBLIC -Wno-unknown-pragmas)  # #pragma unroll
target_include_directories(qtrain_sim PUBLIC ${PROJECT_SOURCE_DIR}/kernels/sim)
target_link_libraries(qtrain_sim PUBLIC qtrain_kernels Boost::context)
