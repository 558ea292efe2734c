// The product of int8 matrices, out (M, N) = A (M, K) times the transpose of B (N, K), with an
// epilogue that makes of exact sums what the operation wants.
#pragma once

#include "cuda/device.h"

namespace bnbx::gpu {

struct Int8Operands {
  const int8_t* A;
  const int8_t* B;
  int64_t M, N, K;
  bool aligned;  // every row begins at a multiple of 16 bytes

  Int8Operands(const int8_t* a, const int8_t* b, int64_t m, int64_t n, int64_t k)
      : A(a),
        B(b),
        M(m),
        N(n),
        K(k),
        aligned(k % 16 == 0 && is_aligned(a, 16) && is_aligned(b, 16)) {}
};

static constexpr int kChunk = 16;  // int8 in the largest access
using Chunk = Vector<uint32_t, 4>;

__device__ inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Entries k to k + 15 of a row of K, zeros beyond its end.
__device__ inline Chunk load_chunk(const int8_t* row, int64_t k, int64_t K, bool aligned) {
  Chunk chunk{};
  if (aligned) {
    if (k < K) chunk = load_vector<uint32_t, 4>(reinterpret_cast<const uint32_t*>(row + k));
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const uint32_t byte = k + i < K ? static_cast<uint8_t>(row[k + i]) : 0;
      chunk.values[i / 4] |= byte << 8 * (i % 4);
    }
  }
  return chunk;
}

// How groups of threads share a tile of the result: kAlongM x kAlongN groups take kRowTiles x
// kColumnTiles fragments of 16 x 8 each, and kSplit such sets take turns along K. While one stage
// is multiplied, the next kStages - 1 are on their way into shared memory.
template <int kAlongM_, int kAlongN_, int kSplit_, int kRowTiles_, int kColumnTiles_, int kStages_>
struct Tile {
  static constexpr int kAlongM = kAlongM_, kAlongN = kAlongN_, kSplit = kSplit_;
  static constexpr int kRowTiles = kRowTiles_, kColumnTiles = kColumnTiles_;
  static constexpr int kStages = kStages_;
  static constexpr int kRows = kAlongM * kRowTiles * 16;
  static constexpr int kColumns = kAlongN * kColumnTiles * 8;
  static constexpr int kLines = kRows + kColumns;  // of A, then of B
  static constexpr int kThreads = kAlongM * kAlongN * kSplit * kGroup;
  // Neighbouring columns of one row that a lane gets.
  static constexpr int kRun = 2 * kColumnTiles;
  // A stage has kSplit panels. A panel has 64 int8 of each line, in chunks of 16. See chunk_of().
  static constexpr int kDepth = 64;
  static constexpr int kPanelBytes = kLines * kDepth;
  static constexpr int kStageBytes = kSplit * kPanelBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kSharedBytes <= 48 << 10, "what every GPU has");
  static constexpr int kChunks = kStageBytes / kChunk / kThreads;  // that a thread copies
  static_assert(kThreads % 4 == 0 && kLines % (kThreads / 4) == 0, "a thread keeps to its lines");

  using Sums = int32_t[kRowTiles][kColumnTiles][4];
  static constexpr int kSumsPerLane = kRowTiles * kColumnTiles * 4;
  static_assert((kSplit - 1) * kSumsPerLane * (kThreads / kSplit) * 4 <= kSharedBytes, "");
};

// Where in the result a block, and a lane in it, is.
template <class Tile>
struct Place {
  int64_t row, column;            // the block's first
  int64_t lane_row, lane_column;  // the lane's: rows in steps of 8, kRun columns
  int group_row, group_column;    // the group's, from the block's
  int split;                      // the part of K; the epilogue is for 0

  // Blocks that run at the same time should share rows and columns: they go down bands of 16 tiles.
  __device__ Place(int64_t M, int64_t N) {
    const unsigned down = static_cast<unsigned>((M + Tile::kRows - 1) / Tile::kRows);
    const unsigned across = static_cast<unsigned>((N + Tile::kColumns - 1) / Tile::kColumns);
    const unsigned first = blockIdx.x / (16 * across) * 16;
    const unsigned rest = blockIdx.x % (16 * across);
    const unsigned height = down - first < 16 ? down - first : 16;
    row = static_cast<int64_t>(first + rest % height) * Tile::kRows;
    column = static_cast<int64_t>(rest / height) * Tile::kColumns;

    const int lane = static_cast<int>(threadIdx.x % kGroup);
    const int group = static_cast<int>(threadIdx.x / kGroup);
    split = group / (Tile::kAlongM * Tile::kAlongN);
    group_row = group % Tile::kAlongM * (Tile::kRowTiles * 16);
    group_column = group / Tile::kAlongM % Tile::kAlongN * (Tile::kColumnTiles * 8);
    lane_row = row + group_row + lane / 4;
    lane_column = column + group_column + lane % 4 * Tile::kRun;
  }
};

// The line of B, of the group's kColumnTiles * 8, that is column `c` of fragment `j`: so chosen
// that a lane's columns of all fragments are neighbours.
template <class Tile>
__device__ int line_of_fragment(int j, int c) {
  return c / 2 * Tile::kRun + 2 * j + c % 2;
}

// Where the `chunk`-th of the four chunks of a line of A, or of B, is in its 64 bytes. Eight lines
// that are read together, which are neighbours in A and pairs, kRun apart, in B, take turns so that
// they are in different banks.
template <class Tile>
__device__ int chunk_of_A(int line, int chunk) {
  return chunk ^ (line / 2 % 4);
}
template <class Tile>
__device__ int chunk_of_B(int line, int chunk) {
  return chunk ^ (line / Tile::kRun % 4);
}

// Copies stages into shared memory: panel after panel, line after line, four threads to a line.
template <class Tile>
class Copies {
 public:
  __device__ Copies(const Int8Operands& x, const Place<Tile>& place, int8_t* shared)
      : x_(x), place_(place), shared_(shared) {
#pragma unroll
    for (int i = 0; i < kLinesPerThread; ++i) lines_[i] = line(i);
  }

  // `k` is the stage's first entry of each line.
  __device__ void start(int64_t k, int stage) const {
    int8_t* to = shared_ + stage * Tile::kStageBytes;
    const int64_t own = k + threadIdx.x % 4 * kChunk;
    if (!x_.aligned || k + Tile::kSplit * Tile::kDepth > x_.K) return start_edge(own, to);
#pragma unroll
    for (int i = 0; i < Tile::kChunks; ++i) {
      copy_async_16(to + place_in_stage(i), lines_[i % kLinesPerThread] + own + depth(i));
    }
  }

 private:
  static constexpr int kLinesPerThread = Tile::kLines / (Tile::kThreads / 4);

  // Of this thread's chunks of a stage, the i-th: how deep it is, its line, where it goes.
  __device__ static int depth(int i) { return i / kLinesPerThread * Tile::kDepth; }

  __device__ static int line_number(int i) {
    return static_cast<int>(threadIdx.x) / 4 + i % kLinesPerThread * (Tile::kThreads / 4);
  }

  __device__ const int8_t* line(int i) const {
    const int number = line_number(i);
    // Beyond the last row or column, the last again: its sums are not stored.
    if (number < Tile::kRows) return x_.A + smaller(place_.row + number, x_.M - 1) * x_.K;
    return x_.B + smaller(place_.column + number - Tile::kRows, x_.N - 1) * x_.K;
  }

  __device__ static int place_in_stage(int i) {
    const int number = line_number(i), chunk = static_cast<int>(threadIdx.x) % 4;
    const int at = number < Tile::kRows ? chunk_of_A<Tile>(number, chunk)
                                        : chunk_of_B<Tile>(number - Tile::kRows, chunk);
    return depth(i) * Tile::kLines + number * Tile::kDepth + at * kChunk;
  }

  // The end of the lines, and lines that begin anywhere.
  __device__ void start_edge(int64_t own, int8_t* to) const {
#pragma unroll 1
    for (int i = 0; i < Tile::kChunks; ++i) {
      const Chunk chunk = load_chunk(line(i), own + depth(i), x_.K, x_.aligned);
      store_vector(reinterpret_cast<uint32_t*>(to + place_in_stage(i)), chunk);
    }
  }

  const Int8Operands& x_;
  const Place<Tile>& place_;
  int8_t* shared_;
  const int8_t* lines_[kLinesPerThread];
};

// Adds a stage's products.
template <class Tile>
__device__ void multiply_stage(const Place<Tile>& place, const int8_t* stage,
                               typename Tile::Sums& sums) {
  const int lane = static_cast<int>(threadIdx.x % kGroup);
  const int8_t* panel = stage + place.split * Tile::kPanelBytes;
  // Of A a lane names, for each half of the depth, chunk lane / 16 of row lane % 16; of B, for both
  // halves at once, chunk lane / 8 of column lane % 8.
  const int8_t* rows = panel + (place.group_row + lane % 16) * Tile::kDepth;
  const int8_t* columns = panel + (Tile::kRows + place.group_column) * Tile::kDepth;
  uint32_t a[2][Tile::kRowTiles][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int chunk = chunk_of_A<Tile>(lane % 16, 2 * half + lane / 16);
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
      load_matrices(a[half][i], rows + i * (16 * Tile::kDepth) + chunk * kChunk);
    }
  }
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const int column = line_of_fragment<Tile>(j, lane % 8);
    uint32_t b[4];
    load_matrices(b, columns + column * Tile::kDepth + chunk_of_B<Tile>(column, lane / 8) * kChunk);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t right[2] = {b[2 * half], b[2 * half + 1]};
#pragma unroll
      for (int i = 0; i < Tile::kRowTiles; ++i) mma(sums[i][j], a[half][i], right);
    }
  }
}

// Adds up what the parts of K have come to; place.split 0 gets the sums.
template <class Tile>
__device__ void join_splits(const Place<Tile>& place, int8_t* shared, typename Tile::Sums& sums) {
  constexpr int kSums = Tile::kSumsPerLane, kLanes = Tile::kThreads / Tile::kSplit;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  auto* parts = reinterpret_cast<int32_t*>(shared);
#pragma unroll
  for (int i = 0; i < kSums && place.split > 0; ++i) {
    parts[((place.split - 1) * kSums + i) * kLanes + lane] =
        sums[i / 4 / Tile::kColumnTiles][i / 4 % Tile::kColumnTiles][i % 4];
  }
  __syncthreads();
  for (int part = 0; part < Tile::kSplit - 1 && place.split == 0; ++part) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      sums[i / 4 / Tile::kColumnTiles][i / 4 % Tile::kColumnTiles][i % 4] +=
          parts[(part * kSums + i) * kLanes + lane];
    }
  }
  __syncthreads();
}

template <class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads)
    multiply_tiles(const Int8Operands x, const Epilogue epilogue) {
  constexpr int kAhead = Tile::kStages - 1;
  constexpr int64_t kStep = Tile::kSplit * Tile::kDepth;
  auto* shared = dynamic_shared<int8_t>();
  const Place<Tile> place(x.M, x.N);
  const Copies<Tile> copies(x, place, shared);
  typename Tile::Sums sums = {};

  for (int stage = 0; stage < kAhead; ++stage) {
    if (stage * kStep < x.K) copies.start(stage * kStep, stage);
    commit_copies();
  }
  int stage = 0;
  for (int64_t k = 0; k < x.K; k += kStep) {
    wait_for_copies<kAhead - 1>();
    // All have this stage, and all are done with the one before, whose place is filled next.
    __syncthreads();
    const int next = stage == 0 ? kAhead : stage - 1;
    if (k + kAhead * kStep < x.K) copies.start(k + kAhead * kStep, next);
    commit_copies();
    multiply_stage<Tile>(place, shared + stage * Tile::kStageBytes, sums);
    stage = stage == kAhead ? 0 : stage + 1;
  }
  __syncthreads();
  if (Tile::kSplit > 1) join_splits<Tile>(place, shared, sums);
  epilogue.template store_tile<Tile>(x, place, sums, shared);
}

// Values of neighbouring columns, from `n` on, of a row of N. `aligned`: rows and runs begin at
// multiples of 16 bytes.
template <class T, int kRun>
__device__ void store_run(T* row, int64_t n, int64_t N, bool aligned, const T (&values)[kRun]) {
  constexpr int kWidth = 16 / sizeof(T);
  if (aligned && n + kRun <= N) {
#pragma unroll
    for (int i = 0; i < kRun; i += kWidth) {
      Vector<T, kWidth> vector;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) vector.values[j] = values[i + j];
      store_vector(row + n + i, vector);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (n + i < N) row[n + i] = values[i];
    }
  }
}

}  // namespace bnbx::gpu
