// The inner products of a tile, from shared memory: on tensor cores for elements of 16 bits, with
// fused multiply-adds for float.
#pragma once

#include "cuda/product_4bit.h"

namespace bnbx::gpu {

// A tile of the product. A block has `kRows` rows of activations, `kWidth` columns of the output,
// and goes through the depth of the product kDepth at a time. Its groups lie side by side: kAcross
// times kDown of them share the output, kAlong share the depth. kCopies is for the PairTable.
template <int kWidth_, int kRows_, int kDepth_, int kAcross_, int kDown_, int kAlong_, int kCopies_>
struct Tile {
  static constexpr int kWidth = kWidth_, kRows = kRows_, kDepth = kDepth_;
  static constexpr int kAcross = kAcross_, kDown = kDown_, kAlong = kAlong_;
  static constexpr int kCopies = kCopies_;
  static constexpr int kThreads = 256;
  // Columns of the depth that are worth a block of its own. In their time, some 1.5 us on an H100,
  // the kernel runs that adds the blocks' sums. With tiles of 128 rows the sums, written and read,
  // are twice the bytes of the packed weight, and the second-level cache is twice as fast as the
  // memory.
  static constexpr int64_t kLeastShare = 1024;
  static constexpr int kMostStages = 3;
  static_assert(kAcross * kDown * kAlong * kGroup == kThreads);
  // Both operands lie in shared memory as rows along the depth. 16 bytes behind each row keep rows
  // that are read together in different banks.
  template <class T>
  static constexpr int kStride = kDepth + 16 / static_cast<int>(sizeof(T));
  // Of the sums, floats, one row for each of A.
  static constexpr int kSumStride = kWidth + 4;
};

// The place of a thread in a tile, and its sums. Tensor cores: the 16 rows of the left operand are
// columns of the output, so that few rows of activations waste nothing. Both operands come in
// slices of 64 along the depth, of which lane l has elements l % 4 * 16 and the next 15. That mma
// calls these other places in the slice changes nothing, as long as both operands agree.
template <class T, class Tile>
struct Multiplier {
  static constexpr int kSlice = 64;
  static constexpr int kLeft = Tile::kWidth / Tile::kAcross / 16;
  static constexpr int kRight = Tile::kRows / Tile::kDown / 8;
  static constexpr int kDepth = Tile::kDepth / Tile::kAlong;
  static constexpr int kStride = Tile::template kStride<T>;
  static_assert(kLeft > 0 && kRight > 0 && kDepth % kSlice == 0);

  float sums[kLeft][kRight][4] = {};
  int width, row, depth, along;

  __device__ Multiplier() {
    const int lane = static_cast<int>(threadIdx.x) % kGroup;
    const int group = static_cast<int>(threadIdx.x) / kGroup;
    along = group / (Tile::kAcross * Tile::kDown);
    width = group % Tile::kAcross * kLeft * 16 + lane / 4;
    row = group / Tile::kAcross % Tile::kDown * kRight * 8;
    depth = along * kDepth + lane % 4 * 16;
  }

  __device__ void add(const T* weight, const T* A) {
    const int lane = static_cast<int>(threadIdx.x) % kGroup;
    const T* left = weight + width * kStride + depth;
    const T* right = A + (row + lane / 4) * kStride + depth;
    for (int slice = 0; slice < kDepth; slice += kSlice) {
      for (int half = 0; half < 2; ++half) {
        const int at = slice + 8 * half;
        Vector<uint32_t, 4> upper[kLeft], lower[kLeft];
        for (int i = 0; i < kLeft; ++i) {
          upper[i] = load_words(left + i * 16 * kStride + at);
          lower[i] = load_words(left + (i * 16 + 8) * kStride + at);
        }
        for (int j = 0; j < kRight; ++j) {
          const auto b = load_words(right + j * 8 * kStride + at);
          for (int i = 0; i < kLeft; ++i) {
            for (int pair = 0; pair < 4; pair += 2) {
              mma(sums[i][j],
                  {upper[i].values[pair], lower[i].values[pair], upper[i].values[pair + 1],
                   lower[i].values[pair + 1]},
                  {b.values[pair], b.values[pair + 1]}, T{});
            }
          }
        }
      }
    }
  }

  // Calls visit(row of A, column of the output, sum) for each sum.
  template <class Visit>
  __device__ void each_sum(Visit visit) const {
    const int lane = static_cast<int>(threadIdx.x) % kGroup;
    for (int i = 0; i < kLeft; ++i) {
      for (int j = 0; j < kRight; ++j) {
        for (int d = 0; d < 4; ++d) {
          visit(row + j * 8 + lane % 4 * 2 + d % 2, width + i * 16 + d / 2 * 8, sums[i][j][d]);
        }
      }
    }
  }

 private:
  __device__ static Vector<uint32_t, 4> load_words(const T* from) {
    return load_vector<uint32_t, 4>(reinterpret_cast<const uint32_t*>(from));
  }
};

template <class Tile>
struct Multiplier<float, Tile> {
  static constexpr int kSide = 16;  // threads side by side, each with every 16th row and column
  static constexpr int kColumns = Tile::kWidth / kSide, kRows = Tile::kRows / kSide;
  static constexpr int kStride = Tile::template kStride<float>;
  static_assert(Tile::kAlong == 1 && Tile::kThreads == kSide * kSide);

  float sums[kRows][kColumns] = {};
  int width, row, along = 0;

  __device__ Multiplier() {
    width = static_cast<int>(threadIdx.x) % kSide;
    row = static_cast<int>(threadIdx.x) / kSide;
  }

  // A step's sums are added up by themselves: errors grow with the length of a step and with the
  // number of steps, not with the whole depth.
  __device__ void add(const float* weight, const float* A) {
    float parts[kRows][kColumns] = {};
    for (int k = 0; k < Tile::kDepth; k += 4) {
      Vector<float, 4> w[kColumns];
      for (int j = 0; j < kColumns; ++j) {
        w[j] = load_vector<float, 4>(weight + (width + j * kSide) * kStride + k);
      }
      for (int i = 0; i < kRows; ++i) {
        const auto a = load_vector<float, 4>(A + (row + i * kSide) * kStride + k);
        for (int j = 0; j < kColumns; ++j) {
          for (int e = 0; e < 4; ++e) {
            parts[i][j] = fmaf(a.values[e], w[j].values[e], parts[i][j]);
          }
        }
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) sums[i][j] += parts[i][j];
    }
  }

  template <class Visit>
  __device__ void each_sum(Visit visit) const {
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) visit(row + i * kSide, width + j * kSide, sums[i][j]);
    }
  }
};

}  // namespace bnbx::gpu
