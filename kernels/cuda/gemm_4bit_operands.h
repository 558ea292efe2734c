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
  static constexpr int64_t kScaleSet = Tile::kRowUnits * Tile::kScaleStride * 4;
  static constexpr int64_t kCodes = kScales + 2 * kScaleSet;
  static constexpr int64_t kStageB = Tile::kWidth * Tile::kCodeStride;
  static constexpr int64_t kStage = kStageB + Tile::kRows * Tile::kStride * 2;
  static constexpr int64_t kSums = Tile::kAlong * Tile::kRows * Tile::kSumStride * 4;

  static constexpr int64_t bytes(int stages) {
    return kCodes + stages * kStage > kSums ? kCodes + stages * kStage : kSums;
  }
};

// What a thread brings of each step: the units of every kUnitRows-th row of the weight with their
// scales, and 16 bytes of every kVectorRows-th row of activations. Codes and activations come some
// steps before the scales.
template <class T, class Tile>
struct OperandStage {
  static constexpr int kUnitRows = Tile::kThreads / Tile::kRowUnits;
  static constexpr int kUnits = Tile::kWidth / kUnitRows;
  static constexpr int kVector = 8, kRowVectors = Tile::kDepth / kVector;
  static constexpr int kVectorRows = Tile::kThreads / kRowVectors;
  static constexpr int kVectors = Tile::kRows / kVectorRows;
  static_assert(kUnits * kUnitRows == Tile::kWidth && kVectors * kVectorRows == Tile::kRows);

  // Steps of the depth at which this thread's units, and its vectors, lie inside of the matrices;
  // and how many of its rows do.
  int unit_steps, vector_steps, units, vectors;
  int codes_at, A_at, scales_at;  // where they go, in bytes from the start of a step's
  const uint8_t* codes;           // the first of the next step
  const T* A;
  int64_t element;  // the first of the next scales' units within the weight
  RawScale scales[kUnits];

  __device__ OperandStage(const Product4& p, const RowTile& rows, int64_t first, int step) {
    const int thread = static_cast<int>(threadIdx.x);
    const int unit = thread % Tile::kRowUnits, unit_row = thread / Tile::kRowUnits;
    const int vector = thread % kRowVectors, vector_row = thread / kRowVectors;
    unit_steps = count_inside(p.K - unit * kUnit, Tile::kDepth);
    vector_steps = count_inside(p.K - vector * kVector, Tile::kDepth);
    units = count_inside(p.N - first - unit_row, kUnitRows);
    vectors = count_inside(rows.end - rows.begin - vector_row, kVectorRows);
    codes_at = unit_row * Tile::kCodeStride + unit * (kUnit / 2);
    A_at = (vector_row * Tile::kStride + vector * kVector) * 2;
    scales_at = (unit * Tile::kScaleStride + unit_row) * 4;
    const int64_t depth0 = int64_t{step} * Tile::kDepth;
    element = (rows.expert * p.N + first + unit_row) * p.K + unit * kUnit + depth0;
    codes = p.B + element / 2;
    A = static_cast<const T*>(p.A) + (rows.begin + vector_row) * p.K + vector * kVector + depth0;
  }

  // Starts the copies of the next step. What lies outside of the matrices is left as it is: nobody
  // multiplies units behind the depth, and nobody writes what comes of other rows.
  __device__ void copy(const Product4& p, int step, unsigned char* to_codes, unsigned char* to_A) {
    if (step < unit_steps) {
      for (int i = 0; i < kUnits; ++i) {
        if (i >= units) continue;
        copy_async_16(to_codes + codes_at + i * kUnitRows * Tile::kCodeStride,
                      codes + i * (kUnitRows / 2) * p.K);
      }
    }
    if (step < vector_steps) {
      for (int i = 0; i < kVectors; ++i) {
        if (i >= vectors) continue;
        copy_async_16(to_A + A_at + i * kVectorRows * Tile::kStride * 2, A + i * kVectorRows * p.K);
      }
    }
    codes += Tile::kDepth / 2;
    A += Tile::kDepth;
  }

  __device__ void load_scales(const Product4& p, int step) {
    if (step < unit_steps) {
      for (int i = 0; i < kUnits; ++i) {
        if (i < units) scales[i] = load_scale(p.scales, element + i * kUnitRows * p.K);
      }
    }
    element += Tile::kDepth;
  }

  __device__ void store_scales(const Product4& p, int step, unsigned char* to) const {
    if (step >= unit_steps) return;
    for (int i = 0; i < kUnits; ++i) {
      if (i >= units) continue;
      *reinterpret_cast<float*>(to + scales_at + i * kUnitRows * 4) =
          finish_scale(p.scales, scales[i]);
    }
  }

 private:
  // How many numbers below `left` there are among 0, step, 2 step and so on.
  __device__ static int count_inside(int64_t left, int step) {
    return left <= 0 ? 0 : static_cast<int>((left - 1) / step) + 1;
  }
};

// The place of a thread in a tile, and its sums.
template <class T, class Tile>
struct OperandMultiplier {
  float sums[Tile::kLeft][Tile::kRight][4] = {};
  WordTable<T> table;
  int lane, width, along;
  int codes_at, A_at, scales_at;  // of this thread in what its group multiplies, in bytes

  __device__ explicit OperandMultiplier(WordTable<T> values) : table(values) {
    const int group = static_cast<int>(threadIdx.x) / kGroup;
    lane = static_cast<int>(threadIdx.x) % kGroup;
    along = group / Tile::kAcross;
    width = group % Tile::kAcross * Tile::kLeft * 16 + lane / 4;
    codes_at = width * Tile::kCodeStride + along * (kUnit / 2) + lane % 4 * 4;
    A_at = (lane / 4 * Tile::kStride + along * kUnit + lane % 4 * 8) * 2;
    scales_at = (along * Tile::kScaleStride + width) * 4;
  }

  // Adds the products of this group's units among the first `units` of a step.
  __device__ void add(const unsigned char* codes, const unsigned char* A,
                      const unsigned char* scales, int64_t units) {
    for (int unit = 0; unit < Tile::kRowUnits; unit += Tile::kAlong) {
      if (along + unit >= units) return;
      add_unit(codes + codes_at + unit * (kUnit / 2), A + A_at + unit * kUnit * 2,
               reinterpret_cast<const float*>(scales + scales_at) + unit * Tile::kScaleStride);
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
  __device__ void add_unit(const unsigned char* codes, const unsigned char* A,
                           const float* scales) {
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
      const auto b = load_vector<uint32_t, 4>(
          reinterpret_cast<const uint32_t*>(A + j * 8 * Tile::kStride * 2));
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
  const auto scales_at = [&](int step) {
    return shared + Memory::kScales + step % 2 * Memory::kScaleSet;
  };
  const auto codes_at = [&](int slot) { return shared + Memory::kCodes + slot * Memory::kStage; };
  const int64_t depth = rows.expert < p.E ? p.K : 0;
  const DepthShare share = share_of_block(depth, Tile::kDepth);
  const int begin = static_cast<int>(share.begin), end = static_cast<int>(share.end);
  OperandStage<T, Tile> stage(p, rows, first, begin);
  // A batch of copies for every step, empty or not, so that counting them works.
  const auto copy = [&](int step, int slot) {
    unsigned char* codes = codes_at(slot);
    if (step < end) stage.copy(p, step, codes, codes + Memory::kStageB);
    commit_copies();
  };

  const int ahead = p.staged - 1;
  for (int slot = 0; slot < ahead; ++slot) copy(begin + slot, slot);
  if (begin < end) stage.load_scales(p, begin);
  table.fill(p.table);
  OperandMultiplier<T, Tile> multiplier(table);
  int slot = 0, free_slot = ahead;
  for (int step = begin; step < end; ++step) {
    stage.store_scales(p, step, scales_at(step));
    wait_for_step(ahead);
    __syncthreads();  // the step's copies and scales are there; the last step has been multiplied
    copy(step + ahead, free_slot);
    if (step + 1 < end) stage.load_scales(p, step + 1);
    const unsigned char* codes = codes_at(slot);
    multiplier.add(codes, codes + Memory::kStageB, scales_at(step),
                   depth / kUnit - int64_t{step} * Tile::kRowUnits);
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
