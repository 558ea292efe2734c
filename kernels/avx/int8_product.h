// The products of LLM.int8(): one int8 product, given as a policy, with an epilogue that makes of a
// run of int32 sums what the operation wants.
#pragma once

#include "avx/int8_vectorwise_quant.h"
#include "avx/parallel.h"
#include "avx/sweep.h"
#include "avx/workspace.h"

namespace bnbx::cpu {

static constexpr int kInt8TileColumns = 4;
static constexpr int64_t kInt8Run = 64;  // columns handed to the epilogue at a time

// sums[r][c] = A's row r times B's row c; a row of sums is kInt8Run long.
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
    for (int c = 0; c < kInt8TileColumns; ++c) {
      b[c] = V::load_int8(B[c] + k);
      prefetch(B[c] + k + kInt8TileColumns * K);  // the same place in the next tile
    }
    for (int r = 0; r < kRows; ++r) {
      const auto a = V::load_int8(A + r * K + k);
      for (int c = 0; c < kInt8TileColumns; ++c) acc[r][c] = V::dot(acc[r][c], a, b[c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kInt8TileColumns; ++c) {
      int32_t sum = V::sum(acc[r][c]);
      for (int64_t i = k; i < K; ++i) sum += A[r * K + i] * B[c][i];
      sums[r * kInt8Run + c] = sum;
    }
  }
}

// The product with dot products of int8 vectors: any shape, best for few rows.
template <class V>
struct DotProduct {
  // Calls epilogue(m, n, count, sums) for runs of A (M, K) times the transpose of B (N, K).
  template <class Epilogue>
  static void run(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                  Epilogue&& epilogue) {
    const int64_t grain = ceil_div(65536, kInt8Run * (K + 1));
    parallel_for(ceil_div(N, kInt8Run), grain, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) {
        const int64_t n0 = i * kInt8Run;
        const int64_t count = smaller(kInt8Run, N - n0);
        for (int64_t m = 0; m < M;) {
          const bool full = m + V::kTileRows <= M;
          int32_t sums[V::kTileRows * kInt8Run];
          for (int64_t c = 0; c < count; c += kInt8TileColumns) {
            const int8_t* rows[kInt8TileColumns];  // beyond the last row, the last again
            for (int t = 0; t < kInt8TileColumns; ++t) rows[t] = B + smaller(n0 + c + t, N - 1) * K;
            if (full) {
              multiply_int8_tile<V, V::kTileRows>(A + m * K, rows, K, sums + c);
            } else {
              multiply_int8_tile<V, 1>(A + m * K, rows, K, sums + c);
            }
          }
          for (int r = 0; r < (full ? V::kTileRows : 1); ++r, ++m) {
            epilogue(m, n0, count, sums + r * kInt8Run);
          }
        }
      }
    });
  }
};

// n values in float, whatever they are; zeros if there are none.
static inline Workspace<float> as_floats(Bias bias, int64_t n) {
  auto out = allocate<float>(n);
  for (int64_t i = 0; i < n; ++i) out[i] = 0.0f;
  if (bias.data == nullptr) return out;
  with_type(bias.dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(bias.data);
    for (int64_t i = 0; i < n; ++i) out[i] = to_float(values[i]);
  });
  return out;
}

// Columns of the activations that were held back, and the same columns of the weight, dequantized.
struct Outliers {
  int64_t count;
  const float* values;   // (M, count)
  const float* weights;  // (count, N)
};

template <class T>
static inline void gather_outliers(const T* A, const int8_t* CB, const float* SCB, int64_t M,
                                   int64_t N, int64_t K, const int64_t* columns, int64_t count,
                                   float* values, float* weights) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t m = 0; m < M; ++m) values[m * count + i] = to_float(A[m * K + columns[i]]);
  }
  parallel_for(N, ceil_div(16384, count + 1), [&](int64_t n, int64_t end) {
    for (; n < end; ++n) {
      const float scale = unit_of_row(SCB[n]);
      for (int64_t i = 0; i < count; ++i) {
        weights[i * N + n] = static_cast<float>(CB[n * K + columns[i]]) * scale;
      }
    }
  });
}

// Makes floats of a run of sums: times both scales, plus the outliers' product, plus the bias.
template <class V, class T>
struct Dequantize {
  int64_t N;
  const float* row_stats;
  const float* col_stats;
  const float* bias;
  const Outliers* outliers;
  T* out;

  void operator()(int64_t m, int64_t n, int64_t count, const int32_t* sums) const {
    using F32 = typename V::F32;
    const F32 row_scale(row_stats[m] * kInt8Scale);
    sweep<V>(count, [&](int64_t i, auto lanes) {
      const F32 scale = load<V>(col_stats + n + i, lanes) * row_scale;
      F32 value = from_int32<V>(sums + i, lanes) * scale;
      for (int64_t o = 0; o < outliers->count; ++o) {
        const F32 x(outliers->values[m * outliers->count + o]);
        value = V::fma(x, load<V>(outliers->weights + o * N + n + i, lanes), value);
      }
      store<V>(out + m * N + n + i, value + load<V>(bias + n + i, lanes), lanes);
    });
  }
};

template <class V, class Product = DotProduct<V>>
void int8_linear_matmul(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                        int32_t* out, Stream) {
  Product::run(A, B, M, N, K, [=](int64_t m, int64_t n, int64_t count, const int32_t* sums) {
    memcpy(out + m * N + n, sums, count * sizeof(int32_t));
  });
}

template <class V>
void int8_mm_dequant(const int32_t* A, const float* row_stats, const float* col_stats, int64_t M,
                     int64_t N, Bias bias, void* out, DType dtype, Stream) {
  const auto bias_row = as_floats(bias, N);
  const Outliers none{};
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const Dequantize<V, T> epilogue{N,     row_stats,           col_stats, bias_row.get(),
                                    &none, static_cast<T*>(out)};
    parallel_for(M, ceil_div(16384, N + 1), [&](int64_t m, int64_t end) {
      for (; m < end; ++m) epilogue(m, 0, N, A + m * N);
    });
  });
}

template <class V, class Product = DotProduct<V>>
void int8_scaled_mm(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                    const float* row_stats, const float* col_stats, Bias bias, void* out,
                    DType dtype, Stream) {
  const auto bias_row = as_floats(bias, N);
  const Outliers none{};
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    Product::run(
        A, B, M, N, K,
        Dequantize<V, T>{N, row_stats, col_stats, bias_row.get(), &none, static_cast<T*>(out)});
  });
}

template <class V, class Product = DotProduct<V>>
void int8_mixed_scaled_mm(const void* A, DType dtype, const int8_t* CA, const int8_t* CB, int64_t M,
                          int64_t N, int64_t K, const float* SCA, const float* SCB,
                          const int64_t* outlier_cols, int64_t outlier_count, Bias bias, void* out,
                          Stream) {
  const auto bias_row = as_floats(bias, N);
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const auto values = allocate<float>(M * outlier_count);
    const auto weights = allocate<float>(outlier_count * N);
    gather_outliers(static_cast<const T*>(A), CB, SCB, M, N, K, outlier_cols, outlier_count,
                    values.get(), weights.get());
    const Outliers outliers{outlier_count, values.get(), weights.get()};
    Product::run(CA, CB, M, N, K,
                 Dequantize<V, T>{N, SCA, SCB, bias_row.get(), &outliers, static_cast<T*>(out)});
  });
}

template <class V, class Product = DotProduct<V>>
void int8_linear(const void* A, DType dtype, int64_t M, int64_t N, int64_t K, const int8_t* CB,
                 const float* SCB, float threshold, Bias bias, int8_t* codes, float* stats,
                 uint8_t* outliers, void* out, Stream stream) {
  const bool decompose = threshold > 0.0f;
  int8_vectorwise_quant<V>(A, dtype, M, K, threshold, codes, stats, decompose ? outliers : nullptr,
                           stream);
  const auto outlier_cols = allocate<int64_t>(K);
  int64_t count = 0;
  for (int64_t k = 0; decompose && k < K; ++k) {
    if (outliers[k] != 0) outlier_cols[count++] = k;
  }
  int8_mixed_scaled_mm<V, Product>(A, dtype, codes, CB, M, N, K, stats, SCB, outlier_cols.get(),
                                   count, bias, out, stream);
}

}  // namespace bnbx::cpu
