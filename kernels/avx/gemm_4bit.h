// gemm_4bit: decode a few rows of the weight into the first-level cache, then multiply every row of
// A with them.
#pragma once

#include "avx/dequantize_4bit.h"
#include "avx/parallel.h"
#include "avx/product_4bit.h"
#include "avx/sweep.h"
#include "avx/workspace.h"

namespace bnbx::cpu {

static constexpr int kTileColumns = 4;   // rows of B, columns of the output, in one tile
static constexpr int64_t kDepth = 1024;  // elements of a row decoded at a time: 16 KiB a tile

// sums[r][c] += A's row r times the decoded row c, over n elements.
template <class V, int kRows, class T>
static inline void multiply_tile(const T* A, int64_t stride, const float* decoded, int64_t n,
                                 float* sums) {
  using F32 = typename V::F32;
  F32 acc[kRows][kTileColumns];
  for (auto& row : acc) {
    for (F32& lane : row) lane = F32(0.0f);
  }
  sweep<V>(n, [&](int64_t k, auto lanes) {
    F32 b[kTileColumns];
    for (int c = 0; c < kTileColumns; ++c) b[c] = load<V>(decoded + c * kDepth + k, lanes);
    for (int r = 0; r < kRows; ++r) {
      const F32 a = load<V>(A + r * stride + k, lanes);
      for (int c = 0; c < kTileColumns; ++c) acc[r][c] = V::fma(a, b[c], acc[r][c]);
    }
  });
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kTileColumns; ++c) sums[r * kTileColumns + c] += V::sum(acc[r][c]);
  }
}

template <class V>
void gemm_4bit(const Product4& p) {
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t M = p.M, N = p.N, K = p.K;
    const T* rows = static_cast<const T*>(p.A);
    const T* bias_row = static_cast<const T*>(p.bias);
    T* result = static_cast<T*>(p.out);
    const Codebook4& book = codebook(p.quant_type);
    const auto table = V::table16(book.values);
    const int64_t tiles = ceil_div(p.end - p.begin, kTileColumns);
    const int64_t grain = ceil_div(32768, kTileColumns * (K + 1));
    const auto workspace = allocate<float>(tiles * kTileColumns * M);
    memset(workspace.get(), 0, tiles * kTileColumns * M * sizeof(float));
    parallel_for(tiles, grain, [&](int64_t tile, int64_t end) {
      alignas(64) float decoded[kTileColumns * kDepth] = {};
      for (; tile < end; ++tile) {
        const int64_t n0 = p.begin + tile * kTileColumns;
        const int64_t columns = smaller(kTileColumns, p.end - n0);
        float* sums = workspace.get() + tile * kTileColumns * M;
        for (int64_t k0 = 0; k0 < K; k0 += kDepth) {
          const int64_t depth = smaller(kDepth, K - k0);
          for (int64_t c = 0; c < columns; ++c) {
            const int64_t first = (p.first_row + n0 + c) * K + k0;
            decode_4bit<V>(p.B, p.scales, table, book.values, first, first + depth,
                           decoded + c * kDepth);
          }
          int64_t m = 0;
          for (; m + V::kTileRows <= M; m += V::kTileRows) {
            multiply_tile<V, V::kTileRows>(rows + m * K + k0, K, decoded, depth,
                                           sums + m * kTileColumns);
          }
          for (; m < M; ++m) {
            multiply_tile<V, 1>(rows + m * K + k0, K, decoded, depth, sums + m * kTileColumns);
          }
        }
        for (int64_t m = 0; m < M; ++m) {
          for (int64_t c = 0; c < columns; ++c) {
            const float offset = bias_row == nullptr ? 0.0f : to_float(bias_row[n0 + c]);
            from_float(sums[m * kTileColumns + c] + offset, result + m * N + n0 + c);
          }
        }
      }
    });
  });
}

}  // namespace bnbx::cpu
