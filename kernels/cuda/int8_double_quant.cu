// int8_double_quant: the rows as int8_vectorwise_quant has them, and the columns the same way.
#include "cuda/int8_rows.h"

namespace bnbx {
namespace gpu {
namespace {

// A block takes kGroup columns, a lane one of them, the groups every kRowGroups-th row.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    quantize_columns(const T* A, int64_t rows, int64_t columns, float threshold, int8_t* out,
                     float* stats) {
  __shared__ uint32_t best_of[kRowGroups][kGroup];
  const int lane = static_cast<int>(threadIdx.x % kGroup);
  const int group = static_cast<int>(threadIdx.x / kGroup);
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kGroup + lane;
  const float limit = outlier_limit(threshold);
  const auto value = [&](int64_t r) {
    const float x = to_float(A[r * columns + c]);
    return fabsf(x) >= limit ? 0.0f : x;
  };
  uint32_t best = 0;
  if (c < columns) {
    for (int64_t r = group; r < rows; r += kRowGroups)
      best = larger(best, magnitude_bits(value(r)));
  }
  best_of[group][lane] = best;
  __syncthreads();
  if (c >= columns) return;
  for (const auto& of_group : best_of) best = larger(best, of_group[lane]);
  const float absmax = stored_absmax(best);
  const bool finite = absmax == absmax;
  const float scale = inverse_of_row(absmax);
  if (group == 0) stats[c] = absmax;
  for (int64_t r = group; r < rows; r += kRowGroups) {
    out[r * columns + c] = finite ? round_to_int8(value(r), scale) : 0;
  }
}

}  // namespace
}  // namespace gpu

void int8_double_quant(const void* A, DType dtype, int64_t rows, int64_t columns, float threshold,
                       int8_t* out_row, int8_t* out_col, float* row_stats, float* col_stats,
                       uint8_t* outliers, Stream stream) {
  int8_vectorwise_quant(A, dtype, rows, columns, threshold, out_row, row_stats, outliers, stream);
  if (columns == 0) return;
  gpu::with_type(dtype, [&](auto type) {
    using T = decltype(type);
    gpu::launch<gpu::quantize_columns<T>>(
        gpu::Blocks(static_cast<unsigned>(gpu::ceil_div(columns, gpu::kGroup))), gpu::kRowThreads,
        0, stream, static_cast<const T*>(A), rows, columns, threshold, out_col, col_stats);
  });
}

}  // namespace bnbx
