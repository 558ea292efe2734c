// What the kernels share that go through a matrix by rows or by columns.
#pragma once

#include "common/int8.h"
#include "cuda/device.h"

namespace bnbx::gpu {

static constexpr int kRowThreads = 256;
static constexpr int kRowGroups = kRowThreads / kGroup;

// The code of x. Added to 1.5 * 2^23, a float of less than 2^22 is rounded to an integer, ties to
// even, which then stands in the lowest bits.
__device__ inline int8_t round_to_int8(float x, float scale) {
  return static_cast<int8_t>(float_bits(x * scale + 12582912.0f) & 0xffu);
}

// Magnitudes as integers, which compare like the floats; infinities are larger, NaN the largest.
__device__ inline uint32_t magnitude_bits(float x) { return float_bits(x) & 0x7fffffffu; }

__device__ inline uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// The largest of magnitudes as the scale that is stored: NaN if one of them was not finite.
__device__ inline float stored_absmax(uint32_t bits) {
  return bits_float(bits < 0x7f800000u ? bits : 0x7fc00000u);
}

// The magnitude from which a value is an outlier. Nothing is at least NaN.
__device__ inline float outlier_limit(float threshold) {
  return threshold > 0.0f ? threshold : bits_float(0x7fc00000u);
}

// A strip of rows and kGroup * kWidth columns: each group of the block takes every kRowGroups-th
// row, each lane kWidth neighbouring columns.
static constexpr int64_t kStripRows = 8 * kRowGroups;

template <int kWidth>
struct Strips {
  int64_t columns;

  __device__ int64_t first_column() const {
    return (static_cast<int64_t>(blockIdx.y) * kGroup + threadIdx.x % kGroup) * kWidth;
  }
  // Further strips, where the grid has fewer than the matrix.
  __device__ int64_t stride() const { return static_cast<int64_t>(gridDim.y) * kGroup * kWidth; }

  // use(row) for the rows of this group.
  template <class Use>
  __device__ void each_row(int64_t rows, Use&& use) const {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kStripRows;
    const int64_t end = first + kStripRows < rows ? first + kStripRows : rows;
    for (int64_t r = first + threadIdx.x / kGroup; r < end; r += kRowGroups) use(r);
  }

  Blocks blocks(int64_t rows) const {
    const int64_t strips = ceil_div(columns, kGroup * kWidth);
    return Blocks(static_cast<unsigned>(ceil_div(rows, kStripRows)),
                  static_cast<unsigned>(strips < 65535 ? strips : 65535));
  }
};

}  // namespace bnbx::gpu
