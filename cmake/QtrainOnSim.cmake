# qtrain_on_sim: the program linked with the simulator, so that --device cuda needs no card. Not part of `all`, not
# installed. For a tree without this file: -DCMAKE_PROJECT_qtrain_INCLUDE=<this file> (scripts/prove behaviour).
function(qtrain_add_on_sim)
  if(TARGET qtrain_on_sim)
    return()
  endif()
  if(NOT TARGET qtrain_sim)
    include(QtrainSim)
  endif()
  get_target_property(sources qtrain SOURCES)
  get_target_property(folder qtrain SOURCE_DIR)
  get_target_property(libraries qtrain LINK_LIBRARIES)
  list(TRANSFORM sources REPLACE "^([^/].*)$" "${folder}/\\1")
  list(REMOVE_ITEM libraries qtrain_cuda)  # a program links one of card and simulator
  add_executable(qtrain_on_sim EXCLUDE_FROM_ALL ${sources})
  qtrain_compile_options(qtrain_on_sim)
  target_link_libraries(qtrain_on_sim PRIVATE ${libraries} qtrain_sim)
  target_compile_definitions(qtrain_on_sim PRIVATE QTRAIN_HAVE_CUDA=1)
endfunction()
# Included by project(), this file comes before the targets.
cmake_language(DEFER CALL qtrain_add_on_sim)
