// int8_vectorwise_quant: a row's values stay in registers between the search for its largest
// magnitude and the rounding.
#include "cuda/int8_rows.h"

namespace bnbx {
namespace gpu {
namespace {

// Vectors of a row that a thread keeps. What is beyond is read again, most of it from the L1 cache.
constexpr int kHeld = 4;

template <class T, int kWidth>
struct Row {
  const T* values;
  uint8_t* outliers;
  float limit;
  bool only;  // the matrix has no other row: its flags are cleared here

  // The magnitudes of a vector; its outliers become zero and their columns are flagged.
  __device__ uint32_t survey(Vector<T, kWidth>* vector, int64_t column) const {
    uint32_t best = 0;
    for (int i = 0; i < kWidth; ++i) {
      const float x = to_float(vector->values[i]);
      const bool outlier = fabsf(x) >= limit;
      if (only && outliers != nullptr) outliers[column + i] = outlier;
      if (outlier) {
        outliers[column + i] = 1;
        vector->values[i] = T{};
      } else {
        best = larger(best, magnitude_bits(x));
      }
    }
    return best;
  }
};

// The largest of a value per thread, for each thread of the team.
template <int kTeam>
__device__ uint32_t team_max(uint32_t x) {
  for (int mask = kGroup / 2; mask > 0; mask /= 2) x = larger(x, shuffle_xor(x, mask));
  if (kTeam > kGroup) {
    __shared__ uint32_t of_group[kRowGroups];
    if (threadIdx.x % kGroup == 0) of_group[threadIdx.x / kGroup] = x;
    __syncthreads();
    for (uint32_t other : of_group) x = larger(x, other);
  }
  return x;
}

// A team of kTeam threads, a group or the block, takes a row. Vectors of kWidth divide the row.
template <class T, int kWidth, int kTeam>
__global__ void __launch_bounds__(kRowThreads, 4)
    quantize_rows(const T* A, int64_t rows, int64_t columns, float threshold, int8_t* out,
                  float* stats, uint8_t* outliers) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads / kTeam) + threadIdx.x / kTeam;
  if (r >= rows) return;
  const Row<T, kWidth> row{A + r * columns, outliers, outlier_limit(threshold), rows == 1};
  const int64_t vectors = columns / kWidth;
  const int64_t first = threadIdx.x % kTeam;
  Vector<T, kWidth> held[kHeld];
  uint32_t best = 0;
  for (int i = 0; i < kHeld; ++i) {
    const int64_t v = first + i * kTeam;
    if (v < vectors) held[i] = load_vector<T, kWidth>(row.values + v * kWidth);
  }
  for (int i = 0; i < kHeld; ++i) {
    const int64_t v = first + i * kTeam;
    if (v < vectors) best = larger(best, row.survey(&held[i], v * kWidth));
  }
  for (int64_t v = first + kHeld * kTeam; v < vectors; v += kTeam) {
    auto vector = load_vector<T, kWidth>(row.values + v * kWidth);
    best = larger(best, row.survey(&vector, v * kWidth));
  }

  const float absmax = stored_absmax(team_max<kTeam>(best));
  const bool finite = absmax == absmax;
  const float scale = inverse_of_row(absmax);
  if (first == 0) stats[r] = absmax;
  const auto encode = [&](const Vector<T, kWidth>& vector, int64_t v) {
    Vector<int8_t, kWidth> codes;
    for (int i = 0; i < kWidth; ++i) {
      const float x = to_float(vector.values[i]);
      codes.values[i] = finite && !(fabsf(x) >= row.limit) ? round_to_int8(x, scale) : 0;
    }
    store_vector(out + r * columns + v * kWidth, codes);
  };
  for (int i = 0; i < kHeld; ++i) {
    const int64_t v = first + i * kTeam;
    if (v < vectors) encode(held[i], v);
  }
  for (int64_t v = first + kHeld * kTeam; v < vectors; v += kTeam) {
    encode(load_vector<T, kWidth>(row.values + v * kWidth), v);
  }
}

__global__ void __launch_bounds__(kRowThreads) clear_flags(uint8_t* outliers, int64_t columns) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (c < columns) outliers[c] = 0;
}

// The codes of a column in which another row has an outlier.
__global__ void __launch_bounds__(kRowThreads)
    clear_outlier_columns(const uint8_t* outliers, int64_t rows, int64_t columns, int8_t* out) {
  const Strips<1> strips{columns};
  for (int64_t c = strips.first_column(); c < columns; c += strips.stride()) {
    if (outliers[c] != 0) strips.each_row(rows, [&](int64_t r) { out[r * columns + c] = 0; });
  }
}

template <class T, int kWidth>
void launch_rows(const T* A, int64_t rows, int64_t columns, float threshold, int8_t* out,
                 float* stats, uint8_t* outliers, Stream stream) {
  const auto by_threads = [&](auto threads) {  // a row
    const int64_t blocks = ceil_div(rows, kRowThreads / threads.value);
    launch<quantize_rows<T, kWidth, threads.value>>(Blocks(static_cast<unsigned>(blocks)),
                                                    kRowThreads, 0, stream, A, rows, columns,
                                                    threshold, out, stats, outliers);
  };
  const bool short_rows = columns <= kHeld * kWidth * kGroup;
  if (short_rows) {
    by_threads(std::integral_constant<int, kGroup>{});
  } else {
    by_threads(std::integral_constant<int, kRowThreads>{});
  }
}

}  // namespace
}  // namespace gpu

void int8_vectorwise_quant(const void* A, DType dtype, int64_t rows, int64_t columns,
                           float threshold, int8_t* out, float* stats, uint8_t* outliers,
                           Stream stream) {
  using namespace gpu;
  const bool hold_back = outliers != nullptr && columns > 0;
  if (hold_back && rows != 1) {
    launch<clear_flags>(Blocks(static_cast<unsigned>(ceil_div(columns, kRowThreads))), kRowThreads,
                        0, stream, outliers, columns);
  }
  if (rows == 0) return;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kWidth = 16 / sizeof(T);
    const bool aligned = columns % kWidth == 0 && is_aligned(A, 16) && is_aligned(out, kWidth);
    (aligned ? launch_rows<T, kWidth> : launch_rows<T, 1>)(static_cast<const T*>(A), rows, columns,
                                                           threshold, out, stats, outliers, stream);
  });
  if (hold_back && rows != 1) {
    launch<clear_outlier_columns>(Strips<1>{columns}.blocks(rows), kRowThreads, 0, stream,
                                  static_cast<const uint8_t*>(outliers), rows, columns, out);
  }
}

}  // namespace bnbx
