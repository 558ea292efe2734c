// The nearest of 256 ascending entries: by bisection, or, for many elements, in one look-up.
#pragma once

#include "cuda/device.h"

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

// By the cell that the top 16 bits of a float (sign, exponent, seven bits of fraction) select. In
// the codebooks of the field a cell has at most one boundary, so one entry of a table says it all:
// the index below the boundary, and the boundary's low 16 bits such that adding those of the value
// carries into the index if the value lies above.
class CellEncoder8 {
 public:
  static constexpr int kBits = 8;

  // Fills the table; `tree` must be complete. Needs 256 threads, and a __syncthreads() must follow.
  // Reads within the tables whatever the entries are.
  __device__ void fill(const float* code, const Encoder8& tree) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread == 0) several_ = 0;
    if (thread < 255) bounds_[thread] = (code[thread] + code[thread + 1]) / 2.0f;
    __syncthreads();
    const uint32_t start = kFirst + threadIdx.x * kEach;
    uint32_t index = 0;  // boundaries below the cell
    for (uint32_t cell = start; cell < start + kEach; ++cell) {
      if (cell == start || cell == kNegative) index = tree(lowest(cell));
      const float end = lowest(cell + 1);
      uint32_t next = index;
      while (next < 255 && bounds_[next] < end) ++next;
      uint32_t low = 0xffff;  // no boundary: nothing is above
      if (next > index) low = ordered(float_bits(bounds_[index])) & 0xffff;
      cells_[cell - kFirst] = (index << 16) + 0xffff - low;
      // The cells next to 0 hold more than one pattern of the top bits.
      const bool merged = cell == kFirst || cell == kLast;
      if (next > index + (merged ? 0 : 1)) several_ = 1;
      index = next;
    }
  }

  // Whether every cell has at most one boundary.
  __device__ bool fits() const { return several_ == 0; }

  __device__ uint32_t operator()(float x) const {
    const uint32_t bits = ordered(float_bits(x));
    const uint32_t cell = min(max(bits >> 16, kFirst), kLast) - kFirst;
    return (cells_[cell] + (bits & 0xffff)) >> 16;
  }

 private:
  // Top bits of ordered(): positive values from 2^-24 to 1, then negative ones from -1 to -2^-24.
  // What is closer to 0 shares the cell at that end.
  static constexpr uint32_t kFirst = 0x3380, kNegative = 0x407f, kLast = 0x4c7f;
  static constexpr uint32_t kCells = kLast - kFirst + 1;
  static constexpr uint32_t kEach = 25;  // cells that a thread fills; odd, for the banks
  static_assert(kEach * 256 == kCells);

  // Bits without the sign that ascend with the value, among the positive and among the negative.
  __device__ static uint32_t ordered(uint32_t bits) {
    return bits ^ static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31);
  }

  __device__ static float lowest(uint32_t cell) {
    if (cell <= kFirst || cell > kLast) return 0.0f;
    return bits_float(cell < kNegative ? cell << 16 : ~(cell << 16));
  }

  uint32_t cells_[kCells];
  float bounds_[255];
  uint32_t several_;
};

}  // namespace bnbx::gpu
