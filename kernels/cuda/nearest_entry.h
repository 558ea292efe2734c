// The nearest of 256 or of 16 ascending entries, from tables in shared memory that the threads of a
// block make together.
#pragma once

#include "common/codebooks.h"
#include "cuda/device.h"

namespace bnbx::gpu {

// For values in [-1, 1]; half-way between two entries it is the lower one.
//
// As in kernels/avx/quantize_blockwise.h, the upper bits of a float select a cell, whose table
// entry says which entry is the first candidate and, by its lower bits, which boundary lies in the
// cell. Here the cells of magnitudes below 2^-7 are wider, 16 to an octave and not 128: the dynamic
// maps have their entries above. So both tables of an optimizer take 23 KB, and a value one
// look-up.
class Nearest256 {
 public:
  static constexpr int kEntries = 256;

  float entries[kEntries];

  // Every thread of the block calls; it synchronizes before what is made can be used.
  __device__ void build(const float* map) {
    const int thread = threadIdx.x;
    if (thread == 0) steps_ = 0;
    for (int i = thread; i < kEntries; i += blockDim.x) entries[i] = map[i];
    __syncthreads();
    for (int i = thread; i < kEntries; i += blockDim.x) {
      bounds_[i] = i < kEntries - 1 ? (entries[i] + entries[i + 1]) / 2.0f : 3.0e38f;
    }
    __syncthreads();
    for (int i = thread / kGroup; i < kEntries; i += blockDim.x / kGroup) {
      build_cells(i, thread % kGroup);
    }
    __syncthreads();
  }

  // Most boundaries in a cell, or 0 if there is none that needs more than the cells.
  __device__ int steps() const { return steps_; }

  __device__ int find(float x, int steps) const {
    const uint32_t bits = float_bits(x), sign = bits & 0x80000000u ? ~0u : 0u;
    const int cell = magnitude_cell(bits & 0x7fffffffu) ^ static_cast<int>(sign);
    const uint32_t found = cells_[cell + kCells];
    int index = static_cast<int>(found >> kLowBits);
    if (steps == 0) return index + (((bits ^ sign) & kLow) > (found & kLow) ? 1 : 0);
    for (int i = 0; i < steps; ++i) index += x > bounds_[index % kEntries] ? 1 : 0;
    return index;
  }

 private:
  static constexpr int kNarrow = 16, kLowBits = 19;  // bits of a float below those of its cell
  static constexpr uint32_t kLow = (1u << kLowBits) - 1;
  static constexpr int kWide = (127 - 24) << (23 - kLowBits);  // 2^-24: below it cell 0 goes on
  static constexpr int kWideCells = 17 << (23 - kLowBits);     // from there to 2^-7
  static constexpr int kOffset = ((127 - 7) << (23 - kNarrow)) - kWideCells;
  static constexpr int kCells = kWideCells + (7 << (23 - kNarrow)) + 1;  // to 1.0 and a bit more

  __device__ static int larger(int a, int b) { return a > b ? a : b; }

  // Of a magnitude up to 1.0, by its bits. At 2^-7 the two terms are equal.
  __device__ static int magnitude_cell(uint32_t bits) {
    const int narrow = static_cast<int>(bits >> kNarrow) - kOffset;
    const int wide = static_cast<int>(bits >> kLowBits) - kWide;
    return larger(larger(narrow, wide), 0);
  }

  // Cells ascend: negative values first, by falling magnitude, then positive ones.
  __device__ static int cell_of(float x) {
    int cell = magnitude_cell(float_bits(x) & 0x7fffffffu);
    if (cell > kCells - 1) cell = kCells - 1;
    return x < 0.0f ? kCells - 1 - cell : kCells + cell;
  }

  // The lanes of a group fill the cells above the boundary before to that of boundary i.
  __device__ void build_cells(int i, int lane) {
    const uint32_t index = static_cast<uint32_t>(i) << kLowBits;
    const int before = i > 0 ? cell_of(bounds_[i - 1]) : -1;
    const int at = i < kEntries - 1 ? cell_of(bounds_[i]) : 2 * kCells;
    for (int cell = before + 1 + lane; cell < at; cell += kGroup) cells_[cell] = index | kLow;
    if (lane != 0 || i == kEntries - 1) return;
    int first = i;
    while (first > 0 && cell_of(bounds_[first - 1]) == at) --first;
    if (first == i) {
      const uint32_t bits = float_bits(bounds_[i]);
      cells_[at] = index | ((bits & 0x80000000u ? ~bits : bits) & kLow);
    }
    // A cell at the ends or around zero holds more than one pattern of the upper bits.
    const bool merged = at % kCells == 0 || at % kCells == kCells - 1;
    if (first < i || merged) atomicMax(&steps_, i - first + 1);
  }

  float bounds_[kEntries];
  uint32_t cells_[2 * kCells];  // index of the first candidate, then the boundary's lower bits
  int steps_;
};

// The same by bisection: reads of 16 words meet no conflicts.
class Nearest16 {
 public:
  static constexpr int kEntries = 16;

  float entries[kEntries];

  __device__ void build(const float* map) {
    const int i = threadIdx.x;
    if (i < kEntries) entries[i] = map[i];
    __syncthreads();
    if (i < kEntries - 1) bounds_[i] = (entries[i] + entries[i + 1]) / 2.0f;
    __syncthreads();
  }

  __device__ int steps() const { return 0; }

  __device__ int find(float x, int) const {
    int index = 0;
    for (int half = kEntries / 2; half > 0; half /= 2) {
      if (x > bounds_[index + half - 1]) index += half;
    }
    return index;
  }

 private:
  float bounds_[kEntries];
};

}  // namespace bnbx::gpu
