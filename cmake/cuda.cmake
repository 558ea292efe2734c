# The CUDA compiler, what GPUs it compiles for, and the name of the module that this gives.

# CMAKE_CUDA_ARCHITECTURES, or CUDAARCHS in the environment, is the user's; a compiler's own default
# is one old GPU. Without -real there is PTX too, which newer GPUs compile for themselves. What is
# compiled for X.Y runs on all X.Z with Z >= Y, so 8.7, 10.3 and 12.1 need no code of their own.
set(has_architectures FALSE)
if(DEFINED CMAKE_CUDA_ARCHITECTURES OR DEFINED ENV{CUDAARCHS})
  set(has_architectures TRUE)
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR
    "COMPUTE_BACKEND=cuda: no CUDA compiler that works. Install the CUDA toolkit, and put its nvcc "
    "into PATH or name it with -DCMAKE_CUDA_COMPILER; a host compiler that it knows can be given "
    "with -DCMAKE_CUDA_HOST_COMPILER.")
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_ID STREQUAL "NVIDIA")
  set(toolkit ${CMAKE_CUDA_COMPILER_VERSION})
else() # Clang, with the toolkit that it has found
  find_package(CUDAToolkit REQUIRED)
  set(toolkit ${CUDAToolkit_VERSION})
endif()
if(toolkit VERSION_LESS 11.8)
  message(FATAL_ERROR "COMPUTE_BACKEND=cuda: expected CUDA 11.8 or newer, got ${toolkit} "
                      "(${CMAKE_CUDA_COMPILER}). Set -DCMAKE_CUDA_COMPILER to a newer nvcc.")
endif()
if(NOT has_architectures)
  if(toolkit VERSION_LESS 12.8)
    set(architectures 60-real 61-real 70-real 75-real 80-real 86-real 89-real 90)
  elseif(toolkit VERSION_LESS 13)
    set(architectures 60-real 61-real 70-real 75-real 80-real 86-real 89-real 90-real 100-real 120)
  else()
    set(architectures 75-real 80-real 86-real 89-real 90-real 100-real 110-real 120)
  endif()
  # Into the cache, where enable_language has left the compiler's default.
  set(CMAKE_CUDA_ARCHITECTURES ${architectures} CACHE STRING "GPUs to compile for" FORCE)
endif()
message(STATUS "CUDA ${toolkit} for ${CMAKE_CUDA_ARCHITECTURES}")

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
# torch brings a runtime of its own, maybe of another version; this one is seen by nobody else.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

# _cuda118, _cuda130: several may lie in one package; bnbx.backends.cuda_modules chooses.
string(REGEX REPLACE "^([0-9]+)\\.([0-9]+).*" "_cuda\\1\\2" BNBX_CUDA_MODULE ${toolkit})

option(BNBX_KERNEL_RESOURCES
       "Write the registers, spills and shared memory of each CUDA kernel beside its object" OFF)
