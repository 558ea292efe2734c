// What becomes of the sums of an int8 product, while they are in registers: store_tile() is for all
// threads of a block of multiply_tiles, store_column() for a group of multiply_few_rows, all of
// whose lanes have the sums.
#pragma once

#include "common/int8.h"
#include "cuda/int8_bias.h"
#include "cuda/int8_outliers.h"

namespace bnbx::gpu {

struct StoreSums {
  int32_t* out;
  bool aligned;

  template <class Tile>
  __device__ void store_tile(const Int8Operands& x, const Place<Tile>& place,
                             const typename Tile::Sums& sums, int8_t*) const {
    if (place.split != 0) return;
#pragma unroll
    for (int i = 0; i < 2 * Tile::kRowTiles; ++i) {
      const int64_t m = place.lane_row + 8 * i;
      if (m >= x.M) continue;
      int32_t run[Tile::kRun];
#pragma unroll
      for (int c = 0; c < Tile::kRun; ++c) run[c] = sums[i / 2][c / 2][i % 2 * 2 + c % 2];
      store_run(out + m * x.N, place.lane_column, x.N, aligned, run);
    }
  }

  template <int kRows>
  __device__ void store_column(const Int8Operands& x, int64_t n,
                               const int32_t (&sums)[kRows]) const {
    if (threadIdx.x % kGroup != 0) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r < x.M) out[r * x.N + n] = sums[r];
    }
  }
};

// Without outliers an entry is sum * (column * (row * kInt8Scale)) + bias. With outliers it is
// (sum * unit_of_row(row) + their products with the codes of B) * unit_of_row(column) + bias.
template <class T>
struct Scale {
  const float* row_stats;
  const float* col_stats;
  Bias bias;
  T* out;
  bool aligned;
  Outliers<T> outliers;

  template <class Tile>
  using Values = float[Tile::kRowTiles][Tile::kColumnTiles][4];

  __device__ float row_scale(const Int8Operands& x, int64_t m) const {
    return m < x.M ? row_stats[m] : 0.0f;
  }

  // Returns whether there were outliers. For all threads of the block.
  template <class Tile>
  __device__ bool add_outliers(const Int8Operands& x, const Place<Tile>& place, int8_t* shared,
                               Values<Tile>& values) const {
    using Panel = OutlierPanel<Tile, T>;
    using List = OutlierList<Tile>;
    static_assert(sizeof(Panel) + sizeof(List) <= Tile::kSharedBytes, "");
    auto* panel = reinterpret_cast<Panel*>(shared);
    auto* list = reinterpret_cast<List*>(shared + sizeof(Panel));
    bool found = false;
    for (int64_t first = 0; first < outliers.extent; first += List::kEntries) {
      const int count = list->fill(outliers, first);
      for (int i = 0; i < count; i += Panel::kColumns) {
        if (!found) in_units_of_codes<Tile>(x, place, values);
        found = true;
        const int width = count - i < Panel::kColumns ? count - i : Panel::kColumns;
        fill_panel<Tile, T>(x, place, outliers.A, list->columns + i, width, panel);
        __syncthreads();
        if (place.split == 0) panel->multiply(place, width, values);
        __syncthreads();
      }
      __syncthreads();
    }
    return found;
  }

  template <class Tile>
  __device__ void in_units_of_codes(const Int8Operands& x, const Place<Tile>& place,
                                    Values<Tile>& values) const {
#pragma unroll
    for (int i = 0; i < 2 * Tile::kRowTiles; ++i) {
      const float unit = unit_of_row(row_scale(x, place.lane_row + 8 * i));
#pragma unroll
      for (int c = 0; c < Tile::kRun; ++c) values[i / 2][c / 2][i % 2 * 2 + c % 2] *= unit;
    }
  }

  template <class Tile>
  __device__ void store_tile(const Int8Operands& x, const Place<Tile>& place,
                             const typename Tile::Sums& sums, int8_t* shared) const {
    Values<Tile> values;
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) values[i][j][k] = static_cast<float>(sums[i][j][k]);
      }
    }
    const bool mixed = outliers.extent > 0 && add_outliers<Tile>(x, place, shared, values);
    if (place.split != 0) return;
    float scales[Tile::kRun], added[Tile::kRun];
#pragma unroll
    for (int c = 0; c < Tile::kRun; ++c) {
      const int64_t n = smaller(place.lane_column + c, x.N - 1);
      scales[c] = mixed ? unit_of_row(col_stats[n]) : col_stats[n];
      added[c] = bias_at(bias, n);
    }
#pragma unroll
    for (int i = 0; i < 2 * Tile::kRowTiles; ++i) {
      const int64_t m = place.lane_row + 8 * i;
      if (m >= x.M) continue;
      const float row = mixed ? 1.0f : row_stats[m] * kInt8Scale;
      T run[Tile::kRun];
#pragma unroll
      for (int c = 0; c < Tile::kRun; ++c) {
        from_float(values[i / 2][c / 2][i % 2 * 2 + c % 2] * (scales[c] * row) + added[c], &run[c]);
      }
      store_run(out + m * x.N, place.lane_column, x.N, aligned, run);
    }
  }

  // For all lanes of a group, which have the same sums.
  template <int kRows>
  __device__ void store_column(const Int8Operands& x, int64_t n,
                               const int32_t (&sums)[kRows]) const {
    float products[kRows] = {};
    bool mixed = false;
    if (outliers.extent > 0) {
      outliers.each_of_lane([&](int64_t k) {
        mixed = true;
        const float code = static_cast<float>(x.B[n * x.K + k]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float value = to_float(outliers.A[smaller(r, x.M - 1) * x.K + k]);
          products[r] = fmaf(value, code, products[r]);
        }
      });
      mixed = any(mixed);
#pragma unroll
      for (float& product : products) product = group_sum(product);
    }
    if (threadIdx.x % kGroup != 0) return;
    const float column = col_stats[n], added = bias_at(bias, n);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= x.M) continue;
      const float row = row_stats[r], sum = static_cast<float>(sums[r]);
      const float value = mixed ? (sum * unit_of_row(row) + products[r]) * unit_of_row(column)
                                : sum * (column * (row * kInt8Scale));
      from_float(value + added, &out[r * x.N + n]);
    }
  }
};

}  // namespace bnbx::gpu
