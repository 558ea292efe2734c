// int8_vectorwise_dequant: codes times the unit of their row.
#include "cuda/int8_rows.h"

namespace bnbx {
namespace gpu {
namespace {

template <int kWidth>
__global__ void __launch_bounds__(kRowThreads)
    dequantize_rows(const int8_t* A, const float* stats, int64_t rows, int64_t columns,
                    float* out) {
  const Strips<kWidth> strips{columns};
  for (int64_t c = strips.first_column(); c < columns; c += strips.stride()) {
    strips.each_row(rows, [&](int64_t r) {
      const auto codes = load_vector<int8_t, kWidth>(A + r * columns + c);
      const float unit = unit_of_row(stats[r]);
      Vector<float, kWidth> values;
      for (int i = 0; i < kWidth; ++i)
        values.values[i] = static_cast<float>(codes.values[i]) * unit;
      store_vector(out + r * columns + c, values);
    });
  }
}

template <int kWidth>
void launch_rows(const int8_t* A, const float* stats, int64_t rows, int64_t columns, float* out,
                 Stream stream) {
  launch<dequantize_rows<kWidth>>(Strips<kWidth>{columns}.blocks(rows), kRowThreads, 0, stream, A,
                                  stats, rows, columns, out);
}

}  // namespace
}  // namespace gpu

void int8_vectorwise_dequant(const int8_t* A, const float* stats, int64_t rows, int64_t columns,
                             float* out, Stream stream) {
  if (rows == 0 || columns == 0) return;
  const bool aligned = columns % 4 == 0 && gpu::is_aligned(A, 4) && gpu::is_aligned(out, 16);
  (aligned ? gpu::launch_rows<4> : gpu::launch_rows<1>)(A, stats, rows, columns, out, stream);
}

}  // namespace bnbx
