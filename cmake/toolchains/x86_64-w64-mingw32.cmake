# Builds for Windows on another machine, with MinGW-w64; ctest runs the tests under Wine.
# Debian and Ubuntu: apt-get install g++-mingw-w64-x86-64-posix wine64.
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
set(CMAKE_FIND_ROOT_PATH /usr/x86_64-w64-mingw32)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
# Windows aligns stacks to 16 bytes, and this compiler does not align them further (GCC bug 54412),
# but takes its vectors there for aligned. MSVC and clang do it right.
set(CMAKE_CXX_FLAGS_INIT -Wa,-muse-unaligned-vector-move)
# No libraries of the compiler beside the tests.
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
set(OpenMP_gomp_LIBRARY gomp CACHE STRING "Without a path, so that the linker takes the static one")
set(CMAKE_CROSSCOMPILING_EMULATOR /usr/lib/wine/wine64)
