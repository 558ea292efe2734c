// int8_mm_dequant: sums of products times the units of their row and column, plus a bias.
#include "cuda/int8_bias.h"
#include "cuda/int8_rows.h"

namespace bnbx {
namespace gpu {
namespace {

template <class T, int kWidth>
__global__ void __launch_bounds__(kRowThreads)
    dequantize_sums(const int32_t* A, const float* row_stats, const float* col_stats, int64_t M,
                    int64_t N, Bias bias, T* out) {
  const Strips<kWidth> strips{N};
  for (int64_t n = strips.first_column(); n < N; n += strips.stride()) {
    float scales[kWidth], added[kWidth];
    for (int i = 0; i < kWidth; ++i) scales[i] = col_stats[n + i];
    load_bias(bias, n, N, added);
    strips.each_row(M, [&](int64_t m) {
      const auto sums = load_vector<int32_t, kWidth>(A + m * N + n);
      const float row = row_stats[m] * kInt8Scale;
      Vector<T, kWidth> values;
      for (int i = 0; i < kWidth; ++i) {
        const float sum = static_cast<float>(sums.values[i]);
        from_float(sum * (scales[i] * row) + added[i], &values.values[i]);
      }
      store_vector(out + m * N + n, values);
    });
  }
}

template <class T, int kWidth>
void launch_rows(const int32_t* A, const float* row_stats, const float* col_stats, int64_t M,
                 int64_t N, Bias bias, T* out, Stream stream) {
  launch<dequantize_sums<T, kWidth>>(Strips<kWidth>{N}.blocks(M), kRowThreads, 0, stream, A,
                                     row_stats, col_stats, M, N, bias, out);
}

}  // namespace
}  // namespace gpu

void int8_mm_dequant(const int32_t* A, const float* row_stats, const float* col_stats, int64_t M,
                     int64_t N, Bias bias, void* out, DType dtype, Stream stream) {
  if (M == 0 || N == 0) return;
  gpu::with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const bool aligned =
        N % 4 == 0 && gpu::is_aligned(A, 16) && gpu::is_aligned(out, 4 * sizeof(T));
    (aligned ? gpu::launch_rows<T, 4> : gpu::launch_rows<T, 1>)(A, row_stats, col_stats, M, N, bias,
                                                                static_cast<T*>(out), stream);
  });
}

}  // namespace bnbx
