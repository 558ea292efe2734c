# Builds for 64-bit Arm Linux on another machine; ctest runs the tests under qemu's user emulation.
# Debian and Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user. CMAKE_CXX_COMPILER may name a
# clang instead.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
if(NOT DEFINED CMAKE_CXX_COMPILER)
  set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
endif()
set(CMAKE_CXX_COMPILER_TARGET aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
if(SKBUILD)
  # This machine's Python stands in for the other's, of which a wheel needs only the headers; CMake
  # would start it in the emulator (CMP0190). `env` starts it as it is.
  set(CMAKE_CROSSCOMPILING_EMULATOR env)
endif()
