// A tile of gemm_4bit or gemm_4bit_transposed, for any number of rows: decode a tile of the weight
// into shared memory, once for all rows of the block, then multiply. Blocks with the same
// blockIdx.x share the depth of a tile: each writes its sums into the workspace, and the kernel
// that follows adds them in one order.
#pragma once

#include "cuda/stage_4bit.h"

namespace bnbx::gpu {

// The shared memory of a block, in bytes from its start. `stages`, 2 or 3, is of how many steps of
// the depth it has activations and codes, or has them on their way. The sums overwrite all but the
// table when the last step is done.
template <class T, class Tile>
struct TileMemory {
  static constexpr int64_t kSize = sizeof(T);
  static constexpr int64_t kStageA = Tile::kRows * Tile::template kStride<T> * kSize;
  static constexpr int64_t kStageB = Tile::kWidth * Tile::kDepth / 2;
  static constexpr int64_t kScales = PairTable<Tile::kCopies>::kBytes;
  static constexpr int64_t kWeight = kScales + Tile::kWidth * Tile::kDepth / kUnit * 4;
  static constexpr int64_t kA = kWeight + Tile::kWidth * Tile::template kStride<T> * kSize;
  static constexpr int64_t kStage = kStageA + kStageB;
  static constexpr int64_t kSumsEnd = kWeight + Tile::kRows * Tile::kSumStride * 4;

  static constexpr int64_t bytes(int stages) {
    return kA + stages * kStage > kSumsEnd ? kA + stages * kStage : kSumsEnd;
  }
};

// The steps of the depth, [begin, end), that a block has: all, or its share of them.
struct DepthShare {
  int64_t begin, end;
};

__device__ inline DepthShare share_of_block(int64_t depth, int step) {
  const int64_t steps = (depth + step - 1) / step;
  const int64_t share = (steps + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * share;
  return {begin, begin + share < steps ? begin + share : steps};
}

// Waits for the copies of a step, if batches for `ahead` steps, with this one, are under way.
__device__ inline void wait_for_step(int ahead) {
  if (ahead == 1) {
    wait_for_copies<0>();
  } else if (ahead == 2) {
    wait_for_copies<1>();
  } else {
    wait_for_copies<2>();
  }
}

// Writes the tile, whose sums are sum(row, column): the outputs, or this block's part of them.
template <class T, class Tile, class Sum>
__device__ inline void write_outputs(const Product4& p, const RowTile& rows, int64_t first,
                                     int64_t width, Sum sum_of) {
  float* part = p.workspace == nullptr ? nullptr : p.workspace + blockIdx.y * p.M * width;
  const T* bias = static_cast<const T*>(p.bias);
  if (bias != nullptr) bias = rows.expert < p.E ? bias + rows.expert * width : nullptr;
  T* out = static_cast<T*>(p.out);
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * Tile::kWidth; i += Tile::kThreads) {
    const int64_t row = rows.begin + i / Tile::kWidth, column = first + i % Tile::kWidth;
    if (row >= rows.end || column >= width) continue;
    float sum = sum_of(i / Tile::kWidth, i % Tile::kWidth);
    if (part != nullptr) {
      part[row * width + column] = sum;
      continue;
    }
    if (bias != nullptr) sum += to_float(bias[column]);
    from_float(sum, out + row * width + column);
  }
}

// Adds the sums of the groups that share the depth, one after the other, and writes the tile.
template <class T, class Tile, bool kTransposed>
__device__ inline void write_tile(const Product4& p, const RowTile& rows, int64_t first,
                                  const Multiplier<T, Tile>& multiplier, float* sums) {
  for (int along = 0; along < Tile::kAlong; ++along) {
    __syncthreads();
    if (multiplier.along != along) continue;
    multiplier.each_sum([&](int row, int column, float sum) {
      float& total = sums[row * Tile::kSumStride + column];
      total = along == 0 ? sum : total + sum;
    });
  }
  __syncthreads();
  write_outputs<T, Tile>(p, rows, first, kTransposed ? p.K : p.N, [&](int row, int column) {
    return sums[row * Tile::kSumStride + column];
  });
}

// While one of two blocks waits at a barrier, the other has the multiprocessor.
template <class T, class Tile, bool kTransposed>
__global__ void __launch_bounds__(Tile::kThreads, 2) multiply_tile(Product4 p) {
  using Memory = TileMemory<T, Tile>;
  const RowTile rows = find_row_tile(p, blockIdx.x % p.row_tiles, Tile::kRows);
  if (rows.begin == rows.end) return;
  const int64_t first = static_cast<int64_t>(blockIdx.x / p.row_tiles) * Tile::kWidth;
  unsigned char* shared = dynamic_shared<unsigned char>();
  PairTable<Tile::kCopies> table;
  table.pairs = reinterpret_cast<decltype(table.pairs)>(shared);
  float* scales = reinterpret_cast<float*>(shared + Memory::kScales);
  T* weight = reinterpret_cast<T*>(shared + Memory::kWeight);
  const auto A_at = [&](int slot) {
    return reinterpret_cast<T*>(shared + Memory::kA + slot * Memory::kStage);
  };
  const auto B_at = [&](int slot) {
    return shared + Memory::kA + slot * Memory::kStage + Memory::kStageA;
  };
  const Stage<T, Tile, kTransposed> stage{p, rows, table, first};
  const int64_t depth = rows.expert < p.E ? stage.depth() : 0;
  const DepthShare share = share_of_block(depth, Tile::kDepth);
  // A batch of copies for every step, empty or not, so that counting them works.
  const auto copy = [&](int64_t step, int slot) {
    if (step < share.end) {
      stage.copy_activations(step * Tile::kDepth, A_at(slot));
      if (p.aligned_weight) stage.copy_weight(step * Tile::kDepth, B_at(slot));
    }
    commit_copies();
  };

  const int ahead = p.staged - 1;
  for (int slot = 0; slot < ahead; ++slot) copy(share.begin + slot, slot);
  RawScale scale{};
  if (p.aligned_weight && share.begin < share.end) {
    scale = stage.load_unit_scale(share.begin * Tile::kDepth);
  }
  table.fill(p.table);
  Multiplier<T, Tile> multiplier;
  int slot = 0, free_slot = ahead;
  for (int64_t step = share.begin; step < share.end; ++step) {
    const int64_t depth0 = step * Tile::kDepth;
    if (p.aligned_weight) stage.store_unit_scale(depth0, scale, scales);
    wait_for_step(ahead);
    __syncthreads();  // the step's copies and scales are there; the last step has been multiplied
    copy(step + ahead, free_slot);
    if (p.aligned_weight) {
      scale = stage.load_unit_scale(depth0 + Tile::kDepth);
      stage.decode(B_at(slot), scales, weight);
    } else {
      stage.decode_any(depth0, weight);
    }
    __syncthreads();
    multiplier.add(weight, A_at(slot));
    free_slot = slot;
    slot = slot + 1 < p.staged ? slot + 1 : 0;
  }
  write_tile<T, Tile, kTransposed>(p, rows, first, multiplier,
                                   reinterpret_cast<float*>(shared + Memory::kWeight));
}

static constexpr int kAddThreads = 256;

// The outputs of a product, `width` to a row, from the sums of the blocks that shared its depth.
template <class T>
__global__ void __launch_bounds__(kAddThreads) add_splits(Product4 p, int64_t width, int splits) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kAddThreads + threadIdx.x;
  const int64_t size = p.M * width;
  if (i >= size) return;
  float sum = p.workspace[i];
  for (int split = 1; split < splits; ++split) sum += p.workspace[split * size + i];
  if (p.bias != nullptr) sum += to_float(static_cast<const T*>(p.bias)[i % width]);
  from_float(sum, static_cast<T*>(p.out) + i);
}

}  // namespace bnbx::gpu
