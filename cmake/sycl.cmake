# The library of SYCL, with the compiler for devices in it: dpcpp-cpp-rt from the package index, or
# the oneAPI toolkit.
set(BNBX_SYCL_ROOT "" CACHE PATH "Folder with include/sycl and lib/libsycl.so")
find_package(Python REQUIRED COMPONENTS Interpreter)
execute_process(COMMAND "${Python_EXECUTABLE}" -c "import sys; print(sys.prefix)"
                OUTPUT_VARIABLE python_prefix OUTPUT_STRIP_TRAILING_WHITESPACE)
set(roots "${BNBX_SYCL_ROOT}" "$ENV{CMPLR_ROOT}" "${python_prefix}")
find_path(BNBX_SYCL_INCLUDE sycl/version.hpp HINTS ${roots} PATH_SUFFIXES include)
find_library(BNBX_SYCL_LIBRARY sycl HINTS ${roots} PATH_SUFFIXES lib)
if(NOT BNBX_SYCL_INCLUDE OR NOT BNBX_SYCL_LIBRARY)
  message(FATAL_ERROR
    "COMPUTE_BACKEND=sycl: no SYCL library. Install one with `pip install dpcpp-cpp-rt==2026.2.0` "
    "into the environment that builds (then `pip install --no-build-isolation`), or name its folder "
    "with -DBNBX_SYCL_ROOT: the one with include/sycl and lib/libsycl.so.")
endif()
message(STATUS "SYCL: ${BNBX_SYCL_LIBRARY}")

add_library(bnbx_libsycl INTERFACE)
target_include_directories(bnbx_libsycl SYSTEM INTERFACE "${BNBX_SYCL_INCLUDE}")
target_link_libraries(bnbx_libsycl INTERFACE "${BNBX_SYCL_LIBRARY}")
