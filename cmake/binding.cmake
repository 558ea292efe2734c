# The Cython binding: src/bnbx/_ext/backend.pyx, compiled once per backend against its library, for
# GPUs as a part of gpu_backend.pyx.
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module ${SKBUILD_SABI_COMPONENT})

function(bnbx_add_binding module library binding)
  set(folder "${PROJECT_SOURCE_DIR}/src/bnbx/_ext")
  set(source "${CMAKE_CURRENT_BINARY_DIR}/${module}.cxx")
  add_custom_command(
    OUTPUT "${source}"
    COMMAND "${Python_EXECUTABLE}" -m cython --cplus --module-name "bnbx._ext.${module}"
            "${folder}/${binding}.pyx" --output-file "${source}"
    DEPENDS "${folder}/${binding}.pyx" "${folder}/backend.pyx" "${folder}/dlpack.pxd"
            "${folder}/kernels.pxd" "${folder}/paged_memory.pxd" "${folder}/metal_host.pxi"
    COMMENT "Generating ${module}.cxx from ${binding}.pyx"
    VERBATIM)
  python_add_library(${module} MODULE "${source}" WITH_SOABI
                     USE_SABI ${SKBUILD_SABI_VERSION})
  target_link_libraries(${module} PRIVATE ${library})
  install(TARGETS ${module} DESTINATION bnbx/_ext)
endfunction()
