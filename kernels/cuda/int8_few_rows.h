// The int8 product for a few rows of A, whose time is that of reading B: without shared memory, a
// group to kFewColumns rows of B.
#pragma once

#include "cuda/int8_product.h"

namespace bnbx::gpu {

static constexpr int kFewRows = 4;  // at most
static constexpr int kFewColumns = 2;
static constexpr int kFewThreads = 128;
static constexpr int kFewColumnsPerBlock = kFewThreads / kGroup * kFewColumns;

template <int kRows, class Epilogue>
__global__ void __launch_bounds__(kFewThreads)
    multiply_few_rows(const Int8Operands x, const Epilogue epilogue) {
  constexpr int kUnroll = 2;  // chunks of each row of B under way
  const int lane = static_cast<int>(threadIdx.x % kGroup);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kFewColumnsPerBlock +
                        threadIdx.x / kGroup * kFewColumns;
  if (first >= x.N) return;
  // Beyond the last row or column, the last again: its sums are not stored.
  const auto column = [&](int c) { return smaller(first + c, x.N - 1); };
  const auto row = [&](int r) { return smaller(r, x.M - 1); };
  int32_t sums[kRows][kFewColumns] = {};
  for (int64_t k = lane * kChunk; k < x.K; k += kUnroll * kGroup * kChunk) {
    Chunk b[kUnroll][kFewColumns];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int c = 0; c < kFewColumns; ++c) {
        b[u][c] = load_chunk(x.B + column(c) * x.K, k + u * kGroup * kChunk, x.K, x.aligned);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Chunk a = load_chunk(x.A + row(r) * x.K, k + u * kGroup * kChunk, x.K, x.aligned);
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
