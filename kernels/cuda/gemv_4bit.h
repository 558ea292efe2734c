// gemm_4bit for a few rows of A: as fast as the packed weight can be read.
//
// A lane reads 16 bytes, one unit, of each of two or four rows of the weight, and the next ones
// before it works on these. Its codes lie in one block, so that a unit needs one scale. The groups
// of a block share the depth and its sets of rows among each other; their sums are added through
// shared memory, in the same order every time. A block goes on to other rows, for which table and
// activations are there already, so that there is no time without loads under way.
#pragma once

#include "cuda/product_4bit.h"

namespace bnbx::gpu {

static constexpr int kGemvThreads = 256;
static constexpr int kGemvWidth = 8;         // weight rows that a block has at a time
static constexpr int64_t kGemvBlocks = 264;  // two for each multiprocessor of an H100

// How a block does kM rows of A.
template <int kM>
struct GemvShape {
  // Weight rows of a set: what a lane has in flight. With more sums than these the registers that
  // two blocks leave each thread, 128, are not enough.
  static constexpr int kRows = kM <= 2 ? 4 : 2;
  static constexpr int kSets = kGemvWidth / kRows;
  static constexpr int kSplits = kGemvThreads / kGroup / kSets;
  static constexpr int kDepth = kSplits * kGroup * kUnit;  // of one step
};

// Values in float32 for every type of activations: a table of words with two 16-bit values has half
// the traffic of shared memory, but to unpack them is a fourth of the instructions.
using GemvTable = PairTable<16>;

// Activations in shared memory: 16 bytes behind each unit let eight lanes, a unit each, read from
// different banks.
template <class T>
struct GemvActivations {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kUnitStride = kUnit + kVector;

  T* values;

  // Elements between rows, of which `depth` columns are staged, a multiple of GemvShape::kDepth.
  BNBX_MEMBER static int64_t stride(int64_t depth) { return depth / kUnit * kUnitStride; }

  // Stages the rows of a tile from the column `depth0` on.
  __device__ void stage(const Product4& p, const RowTile& rows, int64_t depth0) const {
    const T* A = static_cast<const T*>(p.A);
    const int64_t left = p.K - depth0 < p.staged ? p.K - depth0 : p.staged;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      T* to = values + (row - rows.begin) * stride(p.staged);
      for (int k = static_cast<int>(threadIdx.x) * kVector; k < left; k += kGemvThreads * kVector) {
        store_vector(to + k / kUnit * kUnitStride + k % kUnit, load(p, A + row * p.K + depth0 + k));
      }
    }
  }

 private:
  // K is a multiple of the unit, so that there are no parts of vectors.
  __device__ Vector<T, kVector> load(const Product4& p, const T* from) const {
    if (p.aligned_rows) return load_vector<T, kVector>(from);
    Vector<T, kVector> vector;
    for (int i = 0; i < kVector; ++i) vector.values[i] = from[i];
    return vector;
  }
};

// What a lane has of the weight at a time.
template <int kRows>
struct GemvUnits {
  Vector<uint32_t, 4> codes[kRows];
  RawScale scales[kRows];
};

// Loads the units at `element` and the same place in the rows below; nothing beyond the matrix.
template <int kRows>
__device__ inline void load_units(const Product4& p, int64_t element, int rows, bool inside,
                                  GemvUnits<kRows>& units) {
  for (int r = 0; r < kRows; ++r) {
    units.codes[r] = {};
    units.scales[r] = {};
    if (!inside || r >= rows) continue;
    units.codes[r] =
        load_vector<uint32_t, 4>(reinterpret_cast<const uint32_t*>(p.B + (element + r * p.K) / 2));
    units.scales[r] = load_scale(p.scales, element + r * p.K);
  }
}

template <class T>
__device__ inline void load_eight(const T* from, float (&values)[8]) {
  const auto words = load_vector<uint32_t, 4>(reinterpret_cast<const uint32_t*>(from));
  for (int i = 0; i < 4; ++i) unpack(words.values[i], &values[2 * i], &values[2 * i + 1], T{});
}

__device__ inline void load_eight(const float* from, float (&values)[8]) {
  for (int i = 0; i < 8; ++i) values[i] = load_vector<float, 4>(from + i / 4 * 4).values[i % 4];
}

// Adds to sums the products of a unit of each row with the activations at `unit`.
template <class T, int kRows, int kM>
__device__ inline void multiply_units(const Product4& p, const GemvUnits<kRows>& units,
                                      GemvTable table, const T* unit, float (&sums)[kRows][kM]) {
  const int64_t stride = GemvActivations<T>::stride(p.staged);
  float parts[kRows][kM] = {};
  for (int word = 0; word < 4; ++word) {
    float a[kM][8];
    for (int m = 0; m < kM; ++m) load_eight(unit + m * stride + word * 8, a[m]);
    for (int r = 0; r < kRows; ++r) {
      const uint32_t codes = units.codes[r].values[word];
      for (int byte = 0; byte < 4; ++byte) {
        const auto pair = table.pair_of(codes, byte);
        for (int m = 0; m < kM; ++m) {
          parts[r][m] = fmaf(pair.first, a[m][2 * byte], parts[r][m]);
          parts[r][m] = fmaf(pair.second, a[m][2 * byte + 1], parts[r][m]);
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const float scale = finish_scale(p.scales, units.scales[r]);
    for (int m = 0; m < kM; ++m) sums[r][m] = fmaf(scale, parts[r][m], sums[r][m]);
  }
}

template <class T, int kM>
__device__ inline void write_sums(const Product4& p, const RowTile& rows, int64_t first,
                                  const float (&partial)[GemvShape<kM>::kSplits][kGemvWidth * kM]) {
  const int m = static_cast<int>(threadIdx.x) / kGemvWidth;
  const int64_t n = first + threadIdx.x % kGemvWidth;
  if (m >= rows.end - rows.begin || n >= p.N) return;
  float sum = 0.0f;
  for (int split = 0; split < GemvShape<kM>::kSplits; ++split) sum += partial[split][threadIdx.x];
  if (p.bias != nullptr && rows.expert < p.E) {
    sum += to_float(static_cast<const T*>(p.bias)[rows.expert * p.N + n]);
  }
  from_float(sum, static_cast<T*>(p.out) + (rows.begin + m) * p.N + n);
}

template <class T, int kM>
int64_t gemv_shared_bytes(int64_t staged) {
  return GemvTable::kBytes + kM * GemvActivations<T>::stride(staged) * int64_t{sizeof(T)};
}

// What a block does one after the other: the steps of the depth, for each of its sets of rows.
template <int kDepth>
struct GemvStep {
  int64_t tile, depth0;

  __device__ GemvStep next(int64_t depth, int64_t stride) const {
    if (depth0 + kDepth < depth) return {tile, depth0 + kDepth};
    return {tile + stride, 0};
  }
};

template <class T, int kM>
__global__ void __launch_bounds__(kGemvThreads, 2) gemv_4bit(Product4 p) {
  using Shape = GemvShape<kM>;
  using Units = GemvUnits<Shape::kRows>;
  using Step = GemvStep<Shape::kDepth>;
  const RowTile rows = find_row_tile(p, blockIdx.x % p.row_tiles, kM);
  if (rows.begin == rows.end) return;
  unsigned char* shared = dynamic_shared<unsigned char>();
  GemvTable table;
  table.pairs = reinterpret_cast<decltype(table.pairs)>(shared);
  const GemvActivations<T> activations{reinterpret_cast<T*>(shared + GemvTable::kBytes)};

  const int thread = static_cast<int>(threadIdx.x), lane = thread % kGroup;
  const int split = thread / kGroup % Shape::kSplits, set = thread / kGroup / Shape::kSplits;
  const int own = (split * kGroup + lane) * kUnit;
  const int64_t depth = rows.expert < p.E ? p.K : 0;
  const int64_t tiles = (p.N + kGemvWidth - 1) / kGemvWidth, stride = gridDim.x / p.row_tiles;
  const auto load = [&](const Step& step, Units& units) {
    const int64_t row = step.tile * kGemvWidth + set * Shape::kRows, k = step.depth0 + own;
    const int64_t left = step.tile < tiles ? p.N - row : 0;
    load_units(p, (rows.expert * p.N + row) * p.K + k,
               static_cast<int>(left < Shape::kRows ? left : Shape::kRows), k < depth, units);
  };

  __shared__ float partial[2][Shape::kSplits][kGemvWidth * kM];
  float sums[Shape::kRows][kM] = {};
  Units units, next_units;
  Step step{blockIdx.x / p.row_tiles, 0};
  load(step, units);
  table.fill(p.table);
  int64_t staged = -1;
  for (int buffer = 0; step.tile < tiles;) {
    const Step next = step.next(depth, stride);
    load(next, next_units);
    if (staged < 0 || step.depth0 < staged || step.depth0 >= staged + p.staged) {
      staged = step.depth0;
      __syncthreads();  // nobody reads what was staged before
      if (depth > 0) activations.stage(p, rows, staged);
      __syncthreads();
    }
    if (step.depth0 + own < depth) {
      const int64_t unit = (step.depth0 - staged + own) / kUnit;
      multiply_units<T>(p, units, table,
                        activations.values + unit * GemvActivations<T>::kUnitStride, sums);
    }
    if (next.tile != step.tile) {
      for (int r = 0; r < Shape::kRows; ++r) {
        for (int m = 0; m < kM; ++m) {
          const float sum = group_sum(sums[r][m]);
          if (lane == 0) partial[buffer][split][m * kGemvWidth + set * Shape::kRows + r] = sum;
          sums[r][m] = 0.0f;
        }
      }
      // The next sums go to the other buffer, so that one barrier is enough.
      __syncthreads();
      write_sums<T, kM>(p, rows, step.tile * kGemvWidth, partial[buffer]);
      buffer = 1 - buffer;
    }
    units = next_units;
    step = next;
  }
}

}  // namespace bnbx::gpu
