# The module of the backend for Metal, or that of its emulator.
function(bnbx_add_metal_binding module library binding)
  bnbx_add_binding(${module} ${library} ${binding})
  add_custom_command(OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/${module}.cxx" APPEND
                     DEPENDS "${PROJECT_SOURCE_DIR}/src/bnbx/_ext/metal_host.pxi")
endfunction()
