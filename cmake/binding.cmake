# The Cython binding: src/bnbx/_ext/backend.pyx, compiled once per backend against its library.
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module ${SKBUILD_SABI_COMPONENT})
include(UseCython)

function(bnbx_add_binding module library)
  cython_transpile("${PROJECT_SOURCE_DIR}/src/bnbx/_ext/backend.pyx"
    LANGUAGE CXX
    MODULE_NAME "bnbx._ext.${module}"
    OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/${module}.cxx"
    OUTPUT_VARIABLE source)
  python_add_library(${module} MODULE "${source}" WITH_SOABI
                     USE_SABI ${SKBUILD_SABI_VERSION})
  target_link_libraries(${module} PRIVATE ${library})
  install(TARGETS ${module} DESTINATION bnbx/_ext)
endfunction()
