# Stops the configure step, with one message, when a backend cannot be built.
function(bnbx_check_backend backend)
  set(known cpu cuda hip sycl metal)
  if(NOT backend IN_LIST known)
    message(FATAL_ERROR "COMPUTE_BACKEND: expected one of ${known}, got '${backend}'.")
  endif()
  if(backend STREQUAL "cpu")
    return()
  endif()
  if(NOT EXISTS "${PROJECT_SOURCE_DIR}/kernels/${backend}/CMakeLists.txt")
    message(FATAL_ERROR
      "COMPUTE_BACKEND=${backend}: this version of bnbx has no ${backend} kernels yet. "
      "Build with -DCOMPUTE_BACKEND=cpu (the default): on a ${backend} device every operation then "
      "runs through the PyTorch reference.")
  endif()
endfunction()
