// What a tile of a product reads: activations, packed codes and scales of one step of its depth,
// and how the codes become the tile of weights that Multiplier wants.
#pragma once

#include "cuda/multiply_4bit.h"

namespace bnbx::gpu {

template <class T>
__device__ inline void store_eight(T* to, const float (&values)[8]) {
  Vector<uint32_t, 4> words;
  for (int i = 0; i < 4; ++i) words.values[i] = pack(values[2 * i], values[2 * i + 1], T{});
  store_vector(reinterpret_cast<uint32_t*>(to), words);
}

__device__ inline void store_eight(float* to, const float (&values)[8]) {
  for (int i = 0; i < 8; i += 4) {
    store_vector(to + i,
                 Vector<float, 4>{{values[i], values[i + 1], values[i + 2], values[i + 3]}});
  }
}

// One block's part of a product. The weight is staged in units, each with a scale, one to a thread:
// as rows of the tile, or, transposed, as rows of the depth.
template <class T, class Tile, bool kTransposed>
struct Stage {
  static constexpr int kStride = Tile::template kStride<T>;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  // Of the packed tile: units in one of its rows, its rows.
  static constexpr int kRowUnits = (kTransposed ? Tile::kWidth : Tile::kDepth) / kUnit;
  static constexpr int kWeightRows = kTransposed ? Tile::kDepth : Tile::kWidth;
  static constexpr int kUnits = kRowUnits * kWeightRows;
  static_assert(kUnits <= Tile::kThreads);

  const Product4& p;
  const RowTile& rows;
  PairTable<Tile::kCopies> table;
  int64_t first;  // column of the output

  __device__ int64_t width() const { return kTransposed ? p.K : p.N; }
  __device__ int64_t depth() const { return kTransposed ? p.N : p.K; }

  // Starts to copy the activations of the columns from `depth0` on; zeros are behind the last.
  __device__ void copy_activations(int64_t depth0, T* to) const {
    constexpr int kVectors = Tile::kDepth / kVector;
    const T* A = static_cast<const T*>(p.A);
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * kVectors; i += Tile::kThreads) {
      const int64_t row = rows.begin + i / kVectors, k = depth0 + i % kVectors * kVector;
      T* vector = to + i / kVectors * kStride + i % kVectors * kVector;
      const int64_t left = row < rows.end ? depth() - k : 0;
      if (p.aligned_rows && left >= kVector) {
        copy_async_16(vector, A + row * depth() + k);
      } else {
        for (int e = 0; e < kVector; ++e) vector[e] = e < left ? A[row * depth() + k + e] : T{};
      }
    }
  }

  // Starts to copy this thread's unit of the weight, if p.aligned_weight.
  __device__ void copy_weight(int64_t depth0, uint8_t* to) const {
    const int64_t element = unit_element(depth0);
    if (element >= 0) copy_async_16(to + threadIdx.x * (kUnit / 2), p.B + element / 2);
  }

  __device__ RawScale load_unit_scale(int64_t depth0) const {
    const int64_t element = unit_element(depth0);
    return element >= 0 ? load_scale(p.scales, element) : RawScale{};
  }

  // Units outside of the matrix have scale 0, whatever their codes.
  __device__ void store_unit_scale(int64_t depth0, RawScale raw, float* to) const {
    if (static_cast<int>(threadIdx.x) >= kUnits) return;
    to[threadIdx.x] = unit_element(depth0) >= 0 ? finish_scale(p.scales, raw) : 0.0f;
  }

  __device__ void decode(const uint8_t* codes, const float* scales, T* weight) const {
    if constexpr (kTransposed) {
      decode_transposed(codes, scales, weight);
    } else {
      decode_rows(codes, scales, weight);
    }
  }

  // Decodes from global memory, with a scale for each element: blocks begin anywhere in a row, and
  // rows in the middle of a byte.
  __device__ void decode_any(int64_t depth0, T* weight) const {
    constexpr int kEights = Tile::kDepth / 8;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kWidth * kEights; i += Tile::kThreads) {
      const int column = i % Tile::kWidth, at = i / Tile::kWidth * 8;
      float values[8];
      for (int e = 0; e < 8; ++e) values[e] = decode_one(first + column, depth0 + at + e);
      store_eight(weight + column * kStride + at, values);
    }
  }

 private:
  // The first element of this thread's unit within B, or -1 where the matrix has none.
  __device__ int64_t unit_element(int64_t depth0) const {
    const int unit = static_cast<int>(threadIdx.x);
    const int64_t n = (kTransposed ? depth0 : first) + unit / kRowUnits;
    const int64_t k = (kTransposed ? first : depth0) + unit % kRowUnits * kUnit;
    if (unit >= kUnits || n >= p.N || k >= p.K) return -1;
    return (rows.expert * p.N + n) * p.K + k;
  }

  __device__ void decode_rows(const uint8_t* codes, const float* scales, T* weight) const {
    constexpr int kWords = Tile::kDepth / 8;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kWidth * kWords; i += Tile::kThreads) {
      const uint32_t word =
          load_vector<uint32_t, 1>(reinterpret_cast<const uint32_t*>(codes + 4 * i)).values[0];
      const float scale = scales[i / 4];
      float values[8];
      for (int byte = 0; byte < 4; ++byte) {
        const auto pair = table.pair_of(word, byte);
        values[2 * byte] = pair.first * scale;
        values[2 * byte + 1] = pair.second * scale;
      }
      store_eight(weight + i / kWords * kStride + i % kWords * 8, values);
    }
  }

  // A thread has four columns of eight rows of the packed tile at a time: two bytes of each row.
  __device__ void decode_transposed(const uint8_t* codes, const float* scales, T* weight) const {
    constexpr int kQuads = Tile::kWidth / 4, kRowBytes = Tile::kWidth / 2;
    for (int i = static_cast<int>(threadIdx.x); i < kQuads * Tile::kDepth / 8;
         i += Tile::kThreads) {
      const int column = i % kQuads * 4, row = i / kQuads * 8;
      float values[4][8];
      for (int e = 0; e < 8; ++e) {
        const uint32_t bytes =
            load_vector<uint16_t, 1>(
                reinterpret_cast<const uint16_t*>(codes + (row + e) * kRowBytes + column / 2))
                .values[0];
        const float scale = scales[(row + e) * kRowUnits + column / kUnit];
        const auto left = table(bytes & 255u), right = table(bytes >> 8);
        values[0][e] = left.first * scale;
        values[1][e] = left.second * scale;
        values[2][e] = right.first * scale;
        values[3][e] = right.second * scale;
      }
      for (int c = 0; c < 4; ++c) store_eight(weight + (column + c) * kStride + row, values[c]);
    }
  }

  __device__ float decode_one(int64_t column, int64_t along) const {
    const int64_t n = kTransposed ? along : column, k = kTransposed ? column : along;
    if (n >= p.N || k >= p.K) return 0.0f;
    const int64_t element = (rows.expert * p.N + n) * p.K + k;
    const auto pair = table(p.B[element / 2]);
    const float value = element % 2 == 0 ? pair.first : pair.second;
    return value * finish_scale(p.scales, load_scale(p.scales, element));
  }
};

}  // namespace bnbx::gpu
