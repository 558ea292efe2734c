// The int8 product for a few rows of A, whose time is that of reading B: without shared memory, a
// group to kFewColumns rows of B.
#pragma once

#include "cuda/int8_product.h"

namespace bnbx::gpu {

static constexpr int kFewRows = 4;  // at most
static constexpr int kFewColumns = 2;
static constexpr int kFewThreads = 128;
static constexpr int kFewColumnsPerBlock = kFewThreads / kGroup * kFewColumns;

// Adds the products of a group's columns, from `first` on, in the chunks that are the lane's.
template <bool kAligned, int kRows>
__device__ void multiply_chunks(const Int8Operands& x, int64_t first,
                                int32_t (&sums)[kRows][kFewColumns]) {
  constexpr int kUnroll = kAligned ? 2 : 1;  // chunks of each row of B under way
  constexpr int kStride = kGroup * kChunk;
  const int8_t* rows[kRows];
  const int8_t* columns[kFewColumns];
  // Beyond the last row or column, the last again: its sums are not stored.
#pragma unroll
  for (int r = 0; r < kRows; ++r) rows[r] = x.A + smaller(r, x.M - 1) * x.K;
#pragma unroll
  for (int c = 0; c < kFewColumns; ++c) columns[c] = x.B + smaller(first + c, x.N - 1) * x.K;
  for (int64_t k = threadIdx.x % kGroup * kChunk; k < x.K; k += kUnroll * kStride) {
    Chunk b[kUnroll][kFewColumns];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int c = 0; c < kFewColumns; ++c) {
        b[u][c] = load_chunk(columns[c], k + u * kStride, x.K, kAligned);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Chunk a = load_chunk(rows[r], k + u * kStride, x.K, kAligned);
#pragma unroll
        for (int c = 0; c < kFewColumns; ++c) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sums[r][c] = dot4(a.values[i], b[u][c].values[i], sums[r][c]);
          }
        }
      }
    }
  }
}

template <int kRows, class Epilogue>
__global__ void __launch_bounds__(kFewThreads)
    multiply_few_rows(const Int8Operands x, const Epilogue epilogue) {
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * kFewColumnsPerBlock + threadIdx.x / kGroup * kFewColumns;
  if (first >= x.N) return;
  int32_t sums[kRows][kFewColumns] = {};
  if (x.aligned) {
    multiply_chunks<true>(x, first, sums);
  } else {
    multiply_chunks<false>(x, first, sums);
  }
#pragma unroll
  for (auto& of_row : sums) {
#pragma unroll
    for (int32_t& sum : of_row) sum = group_sum(sum);
  }
#pragma unroll
  for (int c = 0; c < kFewColumns && first + c < x.N; ++c) {
    int32_t of_column[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) of_column[r] = sums[r][c];
    epilogue.template store_column<kRows>(x, first + c, of_column);
  }
}

}  // namespace bnbx::gpu
