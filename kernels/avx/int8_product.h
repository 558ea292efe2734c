// The products of LLM.int8(): one tiled int8 product, with an epilogue that makes of each int32 sum
// what the operation wants.
#pragma once

#include <memory>
#include <vector>

#include "avx/int8_vectorwise_quant.h"
#include "avx/parallel.h"
#include "avx/sweep.h"

namespace bnbx::cpu {

static constexpr int kInt8TileColumns = 4;

// sums[r][c] = A's row r times B's row c. B's rows beyond the last repeat it.
template <class V, int kRows>
static inline void multiply_int8_tile(const int8_t* A, const int8_t* const* B, int64_t K,
                                      int32_t* sums) {
  using I32 = typename V::I32;
  I32 acc[kRows][kInt8TileColumns];
  for (auto& row : acc) {
    for (I32& lane : row) lane = I32(0);
  }
  int64_t k = 0;
  for (; k + V::kInt8Width <= K; k += V::kInt8Width) {
    typename V::Int8 b[kInt8TileColumns];
    for (int c = 0; c < kInt8TileColumns; ++c) b[c] = V::load_int8(B[c] + k);
    for (int r = 0; r < kRows; ++r) {
      const auto a = V::load_int8(A + r * K + k);
      for (int c = 0; c < kInt8TileColumns; ++c) acc[r][c] = V::dot(acc[r][c], a, b[c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kInt8TileColumns; ++c) {
      int32_t sum = V::sum(acc[r][c]);
      for (int64_t i = k; i < K; ++i) sum += A[r * K + i] * B[c][i];
      sums[r * kInt8TileColumns + c] = sum;
    }
  }
}

// Calls epilogue(m, n, sum) for every entry of A (M, K) times the transpose of B (N, K).
template <class V, class Epilogue>
static inline void int8_product(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                                Epilogue&& epilogue) {
  const int64_t tiles = ceil_div(N, kInt8TileColumns);
  const int64_t grain = ceil_div(65536, kInt8TileColumns * (K + 1));
  parallel_for(tiles, grain, [&](int64_t tile, int64_t end) {
    for (; tile < end; ++tile) {
      const int64_t n0 = tile * kInt8TileColumns;
      const int8_t* rows[kInt8TileColumns];
      for (int c = 0; c < kInt8TileColumns; ++c) rows[c] = B + smaller(n0 + c, N - 1) * K;
      int32_t sums[V::kTileRows * kInt8TileColumns];
      for (int64_t m = 0; m < M;) {
        const bool full = m + V::kTileRows <= M;
        const int64_t count = full ? V::kTileRows : 1;
        if (full) {
          multiply_int8_tile<V, V::kTileRows>(A + m * K, rows, K, sums);
        } else {
          multiply_int8_tile<V, 1>(A + m * K, rows, K, sums);
        }
        for (int64_t i = 0; i < count * kInt8TileColumns; ++i) {
          const int64_t n = n0 + i % kInt8TileColumns;
          if (n < N) epilogue(m + i / kInt8TileColumns, n, sums[i]);
        }
        m += count;
      }
    }
  });
}

// Calls f with a function from a column to the bias there, 0 where there is none.
template <class Function>
static inline void with_bias(Bias bias, Function&& f) {
  if (bias.data == nullptr) return f([](int64_t) { return 0.0f; });
  with_type(bias.dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(bias.data);
    f([values](int64_t n) { return to_float(values[n]); });
  });
}

static constexpr float kInt8Scale = 1.0f / (127.0f * 127.0f);

template <class V>
void int8_linear_matmul(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                        int32_t* out, Stream) {
  int8_product<V>(A, B, M, N, K, [=](int64_t m, int64_t n, int32_t sum) { out[m * N + n] = sum; });
}

template <class V>
void int8_mm_dequant(const int32_t* A, const float* row_stats, const float* col_stats, int64_t M,
                     int64_t N, Bias bias, void* out, DType dtype, Stream) {
  with_type(dtype, [&](auto type) {
    auto* result = static_cast<decltype(type)*>(out);
    with_bias(bias, [&](auto bias_at) {
      parallel_for(M, ceil_div(16384, N + 1), [&](int64_t m, int64_t end) {
        for (; m < end; ++m) {
          for (int64_t n = 0; n < N; ++n) {
            const float scale = row_stats[m] * col_stats[n] * kInt8Scale;
            const int64_t i = m * N + n;
            from_float(static_cast<float>(A[i]) * scale + bias_at(n), result + i);
          }
        }
      });
    });
  });
}

template <class V>
void int8_scaled_mm(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                    const float* row_stats, const float* col_stats, Bias bias, void* out,
                    DType dtype, Stream) {
  with_type(dtype, [&](auto type) {
    auto* result = static_cast<decltype(type)*>(out);
    with_bias(bias, [&](auto bias_at) {
      int8_product<V>(A, B, M, N, K, [&](int64_t m, int64_t n, int32_t sum) {
        const float scale = row_stats[m] * col_stats[n] * kInt8Scale;
        from_float(static_cast<float>(sum) * scale + bias_at(n), result + m * N + n);
      });
    });
  });
}

template <class V>
void int8_mixed_scaled_mm(const void* A, DType dtype, const int8_t* CA, const int8_t* CB, int64_t M,
                          int64_t N, int64_t K, const float* SCA, const float* SCB,
                          const int64_t* outlier_cols, int64_t outlier_count, Bias bias, void* out,
                          Stream) {
  with_type(dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(A);
    auto* result = static_cast<decltype(type)*>(out);
    with_bias(bias, [&](auto bias_at) {
      int8_product<V>(CA, CB, M, N, K, [&](int64_t m, int64_t n, int32_t sum) {
        float outliers = 0.0f;
        for (int64_t i = 0; i < outlier_count; ++i) {
          const int64_t k = outlier_cols[i];
          outliers += to_float(values[m * K + k]) * static_cast<float>(CB[n * K + k]);
        }
        const float inner = static_cast<float>(sum) * (SCA[m] * SCB[n] * kInt8Scale);
        from_float(inner + outliers * (SCB[n] / 127.0f) + bias_at(n), result + m * N + n);
      });
    });
  });
}

template <class V>
void int8_linear(const void* A, DType dtype, int64_t M, int64_t N, int64_t K, const int8_t* CB,
                 const float* SCB, float threshold, Bias bias, int8_t* codes, float* stats,
                 uint8_t* outliers, void* out, Stream stream) {
  const bool decompose = threshold > 0.0f;
  int8_vectorwise_quant<V>(A, dtype, M, K, threshold, codes, stats, decompose ? outliers : nullptr,
                           stream);
  std::vector<int64_t> outlier_cols;
  for (int64_t k = 0; decompose && k < K; ++k) {
    if (outliers[k] != 0) outlier_cols.push_back(k);
  }
  int8_mixed_scaled_mm<V>(A, dtype, codes, CB, M, N, K, stats, SCB, outlier_cols.data(),
                          static_cast<int64_t>(outlier_cols.size()), bias, out, stream);
}

}  // namespace bnbx::cpu
