// mma, load_matrices and dot4 (see device.h) where the hardware has no such instruction.
#pragma once

#include "common/types.h"

namespace bnbx::gpu {

// Adds the products of the elements in two registers.
template <class T>
__device__ inline void add_products(uint32_t a, uint32_t b, float* sum, T) {
  for (int i = 0; i < 2; ++i) {
    const T x{static_cast<uint16_t>(a >> 16 * i)}, y{static_cast<uint16_t>(b >> 16 * i)};
    *sum = fmaf(to_float(x), to_float(y), *sum);
  }
}

__device__ inline int32_t dot4_by_bytes(uint32_t a, uint32_t b, int32_t sum) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  }
  return sum;
}

// The platform's, which comes later.
__device__ inline int32_t dot4(uint32_t a, uint32_t b, int32_t sum);

__device__ inline void add_products(uint32_t a, uint32_t b, int32_t* sum, int8_t) {
  *sum = dot4(a, b, *sum);
}

template <class Sum, class T>
__device__ inline void mma_by_shuffles(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                       T type) {
  const int lane = static_cast<int>(threadIdx.x % kGroup);
  const int row = lane / 4, column = lane % 4 * 2;
  for (int half = 0; half < 2; ++half) {
    for (int part = 0; part < 4; ++part) {
      const uint32_t upper = shuffle(a[2 * half], 4 * row + part);
      const uint32_t lower = shuffle(a[2 * half + 1], 4 * row + part);
      const uint32_t left = shuffle(b[half], 4 * column + part);
      const uint32_t right = shuffle(b[half], 4 * (column + 1) + part);
      add_products(upper, left, &d[0], type);
      add_products(upper, right, &d[1], type);
      add_products(lower, left, &d[2], type);
      add_products(lower, right, &d[3], type);
    }
  }
}

__device__ inline void load_matrices_by_shuffles(uint32_t (&words)[4], const void* row) {
  const int lane = static_cast<int>(threadIdx.x % kGroup);
  const auto own = reinterpret_cast<uint64_t>(row);
  for (int matrix = 0; matrix < 4; ++matrix) {
    const uint64_t from = shuffle(own, 8 * matrix + lane / 4);
    words[matrix] = reinterpret_cast<const uint32_t*>(from)[lane % 4];
  }
}

}  // namespace bnbx::gpu
