# The HIP compiler, and what GPUs it compiles for.

# CMAKE_HIP_ARCHITECTURES is the user's; CMake's own default is the GPU of this machine, or else an
# old one.
set(has_architectures FALSE)
if(DEFINED CMAKE_HIP_ARCHITECTURES)
  set(has_architectures TRUE)
endif()
if(CMAKE_VERSION VERSION_LESS 3.28)
  message(FATAL_ERROR "COMPUTE_BACKEND=hip: expected CMake 3.28 or newer, got ${CMAKE_VERSION}. "
                      "Add -Ccmake.version='>=3.28' to the command of pip, which brings one.")
endif()
include(CheckLanguage)
check_language(HIP)
if(NOT CMAKE_HIP_COMPILER)
  message(FATAL_ERROR
    "COMPUTE_BACKEND=hip: no HIP compiler that works. Install ROCm, of the release that torch is "
    "built for, and put its bin into PATH, or name its clang++ with -DCMAKE_HIP_COMPILER and its "
    "folder with -DCMAKE_HIP_COMPILER_ROCM_ROOT.")
endif()
enable_language(HIP)
if(NOT has_architectures)
  set(architectures gfx90a gfx942 gfx1030 gfx1100)
  include(CheckSourceCompiles)
  set(CMAKE_HIP_ARCHITECTURES gfx1201)
  check_source_compiles(HIP "__global__ void kernel() {} int main() {}" BNBX_HIP_HAS_GFX1201)
  if(BNBX_HIP_HAS_GFX1201)
    list(APPEND architectures gfx1201)
  endif()
  # Into the cache, where enable_language has left the compiler's default.
  set(CMAKE_HIP_ARCHITECTURES ${architectures} CACHE STRING "GPUs to compile for" FORCE)
  unset(CMAKE_HIP_ARCHITECTURES)  # what hides it
endif()
message(STATUS "HIP (${CMAKE_HIP_COMPILER_ID} ${CMAKE_HIP_COMPILER_VERSION}) for "
               "${CMAKE_HIP_ARCHITECTURES}")

set(CMAKE_HIP_STANDARD 17)
set(CMAKE_HIP_STANDARD_REQUIRED ON)
set(CMAKE_HIP_VISIBILITY_PRESET hidden)
