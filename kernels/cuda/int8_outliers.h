// The columns of A that LLM.int8() holds back from its int8 product, times the same columns of B.
#pragma once

#include "cuda/int8_product.h"

namespace bnbx::gpu {

// Which columns: those with a flag (extent K), or a list of them (extent its length), or none
// (extent 0). A (M, K) has their values.
template <class T>
struct Outliers {
  const T* A;
  const uint8_t* flags;
  const int64_t* columns;
  int64_t extent;

  // Flags i to i + 15, zeros beyond the last.
  __device__ Chunk flags_at(int64_t i) const {
    const bool aligned = i + kChunk <= extent && is_aligned(flags, kChunk);
    return load_chunk(reinterpret_cast<const int8_t*>(flags), i, extent, aligned);
  }

  // use(column) for every kGroup-th column, or chunk of flags, beginning at the lane's.
  template <class Use>
  __device__ void each_of_lane(Use&& use) const {
    const int lane = static_cast<int>(threadIdx.x % kGroup);
    if (columns != nullptr) {
      for (int64_t i = lane; i < extent; i += kGroup) use(columns[i]);
      return;
    }
    for (int64_t i = lane * kChunk; i < extent; i += kGroup * kChunk) {
      const Chunk chunk = flags_at(i);
      if ((chunk.values[0] | chunk.values[1] | chunk.values[2] | chunk.values[3]) == 0) continue;
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        if ((chunk.values[j / 4] >> 8 * (j % 4) & 0xffu) != 0) use(i + j);
      }
    }
  }
};

// The list of columns in shared memory, of as many flags or indices at a time as fit.
template <class Tile>
struct OutlierList {
  static constexpr int kEntries = Tile::kThreads * kChunk;
  static constexpr int kGroups = Tile::kThreads / kGroup;
  int32_t columns[kEntries];
  int32_t of_group[kGroups];

  // Fills the list from `first` on; returns its length. For all threads of the block.
  template <class T>
  __device__ int fill(const Outliers<T>& outliers, int64_t first) {
    if (outliers.columns != nullptr) {
      const auto count = static_cast<int>(smaller(outliers.extent - first, kEntries));
      for (int i = static_cast<int>(threadIdx.x); i < count; i += Tile::kThreads) {
        columns[i] = static_cast<int32_t>(outliers.columns[first + i]);
      }
      __syncthreads();
      return count;
    }
    const int64_t own = first + threadIdx.x * kChunk;
    const Chunk chunk = own < outliers.extent ? outliers.flags_at(own) : Chunk{};
    int flagged = 0;
    for (uint32_t word : chunk.values) flagged = dot4(word, 0x01010101u, flagged);
    int count = 0;
    int at = place_of(flagged, &count);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const bool flag = (chunk.values[j / 4] >> 8 * (j % 4) & 0xffu) != 0;
      if (flag) columns[at++] = static_cast<int32_t>(own + j);
    }
    __syncthreads();
    return count;
  }

 private:
  // How many entries the threads before this one have, and in `total` all of them.
  __device__ int place_of(int entries, int* total) {
    const int lane = static_cast<int>(threadIdx.x % kGroup);
    const int group = static_cast<int>(threadIdx.x / kGroup);
    int sum = entries;
    for (int distance = 1; distance < kGroup; distance *= 2) {
      const int before = shuffle(sum, lane >= distance ? lane - distance : lane);
      if (lane >= distance) sum += before;
    }
    if (lane == kGroup - 1) of_group[group] = sum;
    __syncthreads();
    int place = sum - entries;
    for (int i = 0; i < kGroups; ++i) {
      if (i < group) place += of_group[i];
      *total += of_group[i];
    }
    return place;
  }
};

// 16 of these columns in shared memory, lines of A and then of B as in a panel. Codes are exact in
// 16 bits as in 32: their scale comes later. In 16 bits, a line has eight unused elements, so that
// eight neighbouring lines are in different banks.
template <class Tile, class T>
struct OutlierPanel {
  static constexpr int kColumns = 16, kPitch = 24;
  T lines[Tile::kLines][kPitch];

  __device__ T& at(int line, int column) { return lines[line][column]; }

  // Adds the products of the panel's `count` columns; what is beyond them is zero.
  __device__ void multiply(const Place<Tile>& place, int,
                           float (&values)[Tile::kRowTiles][Tile::kColumnTiles][4]) const {
    const int lane = static_cast<int>(threadIdx.x % kGroup);
    uint32_t b[Tile::kColumnTiles / 2][4];  // of two fragments each
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles / 2; ++j) {
      const int column = line_of_fragment<Tile>(2 * j + lane / 16, lane % 8);
      load_matrices(b[j], lines[Tile::kRows + place.group_column + column] + lane / 8 % 2 * 8);
    }
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
      uint32_t a[4];
      load_matrices(a, lines[place.group_row + 16 * i + lane % 16] + lane / 16 * 8);
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
        const uint32_t right[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
        mma(values[i][j], a, right, T{});
      }
    }
  }
};

// In float the tensor cores would lose digits.
template <class Tile>
struct OutlierPanel<Tile, float> {
  static constexpr int kColumns = 16;
  float columns[kColumns][Tile::kLines];

  __device__ float& at(int line, int column) { return columns[column][line]; }

  __device__ void multiply(const Place<Tile>& place, int count,
                           float (&values)[Tile::kRowTiles][Tile::kColumnTiles][4]) const {
    const int lane = static_cast<int>(threadIdx.x % kGroup);
    for (int k = 0; k < count; ++k) {
      const float* a = columns[k] + place.group_row + lane / 4;
      const float* b = columns[k] + Tile::kRows + place.group_column + lane % 4 * Tile::kRun;
#pragma unroll
      for (int i = 0; i < 2 * Tile::kRowTiles; ++i) {
#pragma unroll
        for (int c = 0; c < Tile::kRun; ++c) {
          float& value = values[i / 2][c / 2][i % 2 * 2 + c % 2];
          value = fmaf(a[8 * i], b[c], value);
        }
      }
    }
  }
};

// Fills a panel with columns `list[0]` to `list[count - 1]`, and with zeros.
template <class Tile, class T>
__device__ void fill_panel(const Int8Operands& x, const Place<Tile>& place, const T* A,
                           const int32_t* list, int count, OutlierPanel<Tile, T>* panel) {
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kLines * 16; i += Tile::kThreads) {
    const int line = i / 16, column = i % 16;
    T value{};
    if (column < count && line < Tile::kRows) {
      value = A[smaller(place.row + line, x.M - 1) * x.K + list[column]];
    } else if (column < count) {
      const int64_t n = smaller(place.column + line - Tile::kRows, x.N - 1);
      from_float(static_cast<float>(x.B[n * x.K + list[column]]), &value);
    }
    panel->at(line, column) = value;
  }
}

}  // namespace bnbx::gpu
