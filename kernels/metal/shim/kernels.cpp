// All kernels, as C++.
#define __METAL_VERSION__ 310
#include <metal_stdlib>

#include "bnbx.metal"
