// A tile of gemm_4bit for a few rows of activations: codes become operands of the tensor cores in
// registers, and never lie in shared memory as weights.
//
// A group multiplies a unit of the depth at a time. Of each row of the unit lane l has the eight
// columns from l % 4 * 8 on: one word of codes, or 16 bytes of activations. That mma calls these
// other columns changes nothing, as both operands agree. A unit lies in one block, so its scale is
// applied to the unit's sums, in float32, and the weight itself is rounded to the activations' type
// without it.
#pragma once

#include "cuda/gemm_4bit_tile.h"

namespace bnbx::gpu {

// A block has kAcross times kAlong groups: kAcross lie side by side along the columns of the
// output, kAlong share the depth. Each has kLeft times 16 of these columns, and all rows of
// activations, kRight times 8. The block takes kDepth of the depth at a time.
template <int kLeft_, int kRight_, int kAcross_, int kAlong_, int kDepth_>
struct OperandTile {
  static constexpr int kLeft = kLeft_, kRight = kRight_;
  static constexpr int kAcross = kAcross_, kAlong = kAlong_, kDepth = kDepth_;
  static constexpr int kWidth = kAcross * kLeft * 16, kRows = kRight * 8;
  static constexpr int kThreads = kAcross * kAlong * kGroup;
  static constexpr int kRowUnits = kDepth / kUnit;
  static constexpr int64_t kLeastShare = 512;
  static constexpr int kMostStages = 4;
  static_assert(kRowUnits % kAlong == 0);
  // In shared memory. Behind each row are as many bytes as let the lanes of a group, which read
  // from eight rows of codes, from two of activations at a time, or write scales of as many rows as
  // they have units of, do so from different banks.
  static constexpr int kCodeStride = kDepth / 2 + 16;  // bytes
  static constexpr int kStride = kDepth + 32;          // elements of 16 bits
  static constexpr int kScaleStride = kWidth + kGroup / kRowUnits;
  static constexpr int kSumStride = kWidth + 4;
};

// Two sets of scales, as each step of the depth has only one barrier. The sums overwrite all.
template <class T, int... kNumbers>
struct TileMemory<T, OperandTile<kNumbers...>> {
  using Tile = OperandTile<kNumbers...>;
  static constexpr int64_t kScales = WordTable<T>::kBytes;
  static constexpr int64_t kScaleSet = Tile::kRowUnits * Tile::kScaleStride;  // floats
  static constexpr int64_t kCodes = kScales + 2 * 4 * kScaleSet;
  static constexpr int64_t kStageB = Tile::kWidth * Tile::kCodeStride;
  static constexpr int64_t kStage = kStageB + Tile::kRows * Tile::kStride * 2;
  static constexpr int64_t kSums = Tile::kAlong * Tile::kRows * Tile::kSumStride * 4;

  static constexpr int64_t bytes(int stages) {
    return kCodes + stages * kStage > kSums ? kCodes + stages * kStage : kSums;
  }
};

// What a thread brings of each step: the units of every kUnitRows-th row of the weight, and 16
// bytes of every kVectorRows-th row of activations.
template <class T, class Tile>
struct OperandStage {
  static constexpr int kUnitRows = Tile::kThreads / Tile::kRowUnits;
  static constexpr int kUnits = Tile::kWidth / kUnitRows;
  static constexpr int kVector = 8, kRowVectors = Tile::kDepth / kVector;
  static constexpr int kVectorRows = Tile::kThreads / kRowVectors;
  static constexpr int kVectors = Tile::kRows / kVectorRows;
  static_assert(kUnits * kUnitRows == Tile::kWidth && kVectors * kVectorRows == Tile::kRows);

  const Product4& p;
  int unit, unit_row, vector, vector_row;
  int units, vectors;    // that are inside of the matrices
  const uint8_t* codes;  // of this thread's first unit at the depth 0
  const T* A;            // of its first vector there
  RawScale scales[kUnits];

  __device__ OperandStage(const Product4& product, const RowTile& rows, int64_t first)
      : p(product) {
    const int thread = static_cast<int>(threadIdx.x);
    unit = thread % Tile::kRowUnits, unit_row = thread / Tile::kRowUnits;
    vector = thread % kRowVectors, vector_row = thread / kRowVectors;
    units = count_inside(p.N - first - unit_row, kUnitRows, kUnits);
    vectors = count_inside(rows.end - rows.begin - vector_row, kVectorRows, kVectors);
    codes = p.B + ((rows.expert * p.N + first + unit_row) * p.K + unit * kUnit) / 2;
    A = static_cast<const T*>(p.A) + (rows.begin + vector_row) * p.K + vector * kVector;
  }

  // Starts the copies of a step. What lies outside of the matrices is left as it is: nobody
  // multiplies units behind the depth, and nobody writes what comes of other rows.
  __device__ void copy(int64_t depth0, unsigned char* to_codes, T* to_A) const {
    if (depth0 + unit * kUnit < p.K) {
      const uint8_t* from = codes + depth0 / 2;
      to_codes += unit_row * Tile::kCodeStride + unit * (kUnit / 2);
      for (int i = 0; i < kUnits; ++i) {
        if (i < units) copy_async_16(to_codes + i * kUnitRows * Tile::kCodeStride, from);
        from += kUnitRows / 2 * p.K;
      }
    }
    if (depth0 + vector * kVector < p.K) {
      const T* from = A + depth0;
      to_A += vector_row * Tile::kStride + vector * kVector;
      for (int i = 0; i < kVectors; ++i) {
        if (i < vectors) copy_vector(to_A + i * kVectorRows * Tile::kStride, from);
        from += kVectorRows * p.K;
      }
    }
  }

  __device__ void load_scales(int64_t depth0) {
    if (depth0 + unit * kUnit >= p.K) return;
    const int64_t element = (codes - p.B) * 2 + depth0;
    for (int i = 0; i < kUnits; ++i) {
      if (i < units) scales[i] = load_scale(p.scales, element + i * kUnitRows * p.K);
    }
  }

  __device__ void store_scales(int64_t depth0, float* to) const {
    if (depth0 + unit * kUnit >= p.K) return;
    to += unit * Tile::kScaleStride + unit_row;
    for (int i = 0; i < kUnits; ++i) {
      if (i < units) to[i * kUnitRows] = finish_scale(p.scales, scales[i]);
    }
  }

 private:
  // How many of `most` rows, `step` apart, are before the last of `left` ones.
  __device__ static int count_inside(int64_t left, int step, int most) {
    if (left <= 0) return 0;
    return left > int64_t{most - 1} * step ? most : static_cast<int>((left - 1) / step) + 1;
  }

  __device__ void copy_vector(T* to, const T* from) const {
    if (p.aligned_rows) return copy_async_16(to, from);
    for (int e = 0; e < kVector; ++e) to[e] = from[e];
  }
};

// The place of a thread in a tile, and its sums.
template <class T, class Tile>
struct OperandMultiplier {
  float sums[Tile::kLeft][Tile::kRight][4] = {};
  WordTable<T> table;
  int lane, width, along;

  __device__ explicit OperandMultiplier(WordTable<T> values) : table(values) {
    const int group = static_cast<int>(threadIdx.x) / kGroup;
    lane = static_cast<int>(threadIdx.x) % kGroup;
    along = group / Tile::kAcross;
    width = group % Tile::kAcross * Tile::kLeft * 16 + lane / 4;
  }

  // Adds the products of this group's units among the first `units` of a step.
  __device__ void add(const unsigned char* codes, const float* scales, const T* A, int units) {
    for (int unit = along; unit < Tile::kRowUnits; unit += Tile::kAlong) {
      if (unit < units) {
        add_unit(codes + width * Tile::kCodeStride + unit * (kUnit / 2) + lane % 4 * 4,
                 scales + unit * Tile::kScaleStride + width,
                 A + lane / 4 * Tile::kStride + unit * kUnit + lane % 4 * 8);
      }
    }
  }

  // Calls visit(row of A, column of the output, sum) for each sum.
  template <class Visit>
  __device__ void each_sum(Visit visit) const {
    for (int i = 0; i < Tile::kLeft; ++i) {
      for (int j = 0; j < Tile::kRight; ++j) {
        for (int d = 0; d < 4; ++d) {
          visit(j * 8 + lane % 4 * 2 + d % 2, width + i * 16 + d / 2 * 8, sums[i][j][d]);
        }
      }
    }
  }

 private:
  __device__ void add_unit(const unsigned char* codes, const float* scales, const T* A) {
    uint32_t a[Tile::kLeft][2][4];
    for (int i = 0; i < Tile::kLeft; ++i) {
      const uint32_t upper = word_at(codes + i * 16 * Tile::kCodeStride);
      const uint32_t lower = word_at(codes + (i * 16 + 8) * Tile::kCodeStride);
      for (int byte = 0; byte < 4; ++byte) {
        a[i][byte / 2][byte % 2 * 2] = table.pair_of(upper, byte);
        a[i][byte / 2][byte % 2 * 2 + 1] = table.pair_of(lower, byte);
      }
    }
    for (int j = 0; j < Tile::kRight; ++j) {
      const auto b =
          load_vector<uint32_t, 4>(reinterpret_cast<const uint32_t*>(A + j * 8 * Tile::kStride));
      for (int i = 0; i < Tile::kLeft; ++i) {
        float part[4] = {};
        mma(part, a[i][0], {b.values[0], b.values[1]}, T{});
        mma(part, a[i][1], {b.values[2], b.values[3]}, T{});
        for (int d = 0; d < 4; ++d) {
          sums[i][j][d] = fmaf(scales[i * 16 + d / 2 * 8], part[d], sums[i][j][d]);
        }
      }
    }
  }

  __device__ static uint32_t word_at(const unsigned char* codes) {
    return *reinterpret_cast<const uint32_t*>(codes);
  }
};

// While one of two blocks waits at a barrier, the other has the multiprocessor.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2) multiply_operands(Product4 p) {
  using Memory = TileMemory<T, Tile>;
  const RowTile rows = find_row_tile(p, blockIdx.x % p.row_tiles, Tile::kRows);
  if (rows.begin == rows.end) return;
  const int64_t first = static_cast<int64_t>(blockIdx.x / p.row_tiles) * Tile::kWidth;
  unsigned char* shared = dynamic_shared<unsigned char>();
  const WordTable<T> table{reinterpret_cast<uint32_t*>(shared)};
  const auto scales_of = [&](int64_t step) {
    return reinterpret_cast<float*>(shared + Memory::kScales) + step % 2 * Memory::kScaleSet;
  };
  const auto codes_at = [&](int slot) { return shared + Memory::kCodes + slot * Memory::kStage; };
  const auto A_at = [&](int slot) {
    return reinterpret_cast<T*>(codes_at(slot) + Memory::kStageB);
  };
  const int64_t depth = rows.expert < p.E ? p.K : 0;
  const DepthShare share = share_of_block(depth, Tile::kDepth);
  OperandStage<T, Tile> stage(p, rows, first);
  // A batch of copies for every step, empty or not, so that counting them works.
  const auto copy = [&](int64_t step, int slot) {
    if (step < share.end) stage.copy(step * Tile::kDepth, codes_at(slot), A_at(slot));
    commit_copies();
  };

  const int ahead = p.staged - 1;
  for (int slot = 0; slot < ahead; ++slot) copy(share.begin + slot, slot);
  if (share.begin < share.end) stage.load_scales(share.begin * Tile::kDepth);
  table.fill(p.table);
  OperandMultiplier<T, Tile> multiplier(table);
  int slot = 0, free_slot = ahead;
  for (int64_t step = share.begin; step < share.end; ++step) {
    stage.store_scales(step * Tile::kDepth, scales_of(step));
    wait_for_step(ahead);
    __syncthreads();  // the step's copies and scales are there; the last step has been multiplied
    copy(step + ahead, free_slot);
    if (step + 1 < share.end) stage.load_scales((step + 1) * Tile::kDepth);
    const int64_t left = (depth - step * Tile::kDepth) / kUnit;
    multiplier.add(codes_at(slot), scales_of(step), A_at(slot),
                   left < Tile::kRowUnits ? static_cast<int>(left) : Tile::kRowUnits);
    free_slot = slot;
    slot = slot + 1 < p.staged ? slot + 1 : 0;
  }

  float* sums = reinterpret_cast<float*>(shared);
  __syncthreads();
  multiplier.each_sum([&](int row, int column, float sum) {
    sums[(multiplier.along * Tile::kRows + row) * Tile::kSumStride + column] = sum;
  });
  __syncthreads();
  write_outputs<T, Tile>(p, rows, first, p.N, [&](int row, int column) {
    float sum = sums[row * Tile::kSumStride + column];
    for (int along = 1; along < Tile::kAlong; ++along) {
      sum += sums[(along * Tile::kRows + row) * Tile::kSumStride + column];
    }
    return sum;
  });
}

}  // namespace bnbx::gpu
