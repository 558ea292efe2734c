// The nearest of 256 ascending entries: by bisection, or, for many elements, in one look-up.
#pragma once

#include "cuda/nearest_entry.h"

namespace bnbx::gpu {

// By bisection. The 255 boundaries between entries lie in shared memory as a binary tree, level by
// level: up to the sixth level lanes that look at different boundaries look into different banks.
class Encoder8 {
 public:
  static constexpr int kBits = 8;  // of a code
  using Source = const float*;

  // Fills the tree; needs 255 threads or more, and a __syncthreads() must follow.
  __device__ void fill(const float* code) {
    const int node = static_cast<int>(threadIdx.x);
    if (node >= kNodes) return;
    const int level = 31 - __clz(node + 1);
    const int place = node + 1 - (1 << level);  // among those of the level
    const int at = ((2 * place + 1) << (7 - level)) - 1;
    bounds_[node] = (code[at] + code[at + 1]) / 2.0f;
  }

  // Stays within the tree whatever the entries are.
  __device__ uint32_t operator()(float x) const {
    uint32_t node = 0;
    for (int level = 0; level < 8; ++level) node = 2 * node + (x > bounds_[node] ? 2 : 1);
    return node - kNodes;
  }

 private:
  static constexpr int kNodes = 255;

  float bounds_[kNodes];
};

// In one look-up, where every cell of the table has at most one boundary: in the codebooks of the
// field it has.
struct CellEncoder8 {
  static constexpr int kBits = 8;

  const Nearest256& nearest;

  // The mask keeps a code in its byte whatever the entries are.
  __device__ uint32_t operator()(float x) const {
    return static_cast<uint32_t>(nearest.find(x, 0)) & 0xffu;
  }
};

}  // namespace bnbx::gpu
