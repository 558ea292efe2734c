// What the kernels of all products with a 4-bit weight share: their argument, the scales of the
// weight, and the rows of activations that a thread block has to do with.
#pragma once

#include "common/codebooks.h"
#include "cuda/device.h"

namespace bnbx::gpu {

// Codes that lie in one block whatever the blocksize, and the codes in 16 bytes.
static constexpr int kUnit = 32;

// Scales as BlockScales has them. Blocksizes of a weight are powers of two.
struct Scales4 {
  const float* absmax;
  const uint8_t* absmax_8bit;
  const float* absmax_code;
  const float* absmax_offset;
  int64_t absmax_blocksize;
  int shift;         // log2 of the blocksize
  int absmax_shift;  // log2 of absmax_blocksize, or -1 where that is no power of two
};

// A scale as it was loaded. To finish it takes more loads, which depend on the first ones: callers
// do something else in between.
struct RawScale {
  float absmax;
  uint8_t code;
};

__device__ inline RawScale load_scale(const Scales4& scales, int64_t element) {
  const int64_t block = element >> scales.shift;
  if (scales.absmax_8bit == nullptr) return {scales.absmax[block], 0};
  const int64_t nested =
      scales.absmax_shift >= 0 ? block >> scales.absmax_shift : block / scales.absmax_blocksize;
  return {scales.absmax[nested], scales.absmax_8bit[block]};
}

__device__ inline float finish_scale(const Scales4& scales, RawScale raw) {
  if (scales.absmax_8bit == nullptr) return raw.absmax;
  return scales.absmax_code[raw.code] * raw.absmax + *scales.absmax_offset;
}

struct Values16 {
  float values[16];
};

// gemm_4bit and its three relatives. For one weight `ends` is null and E is 1. "Width" and "depth"
// are those of the product: of the N x K weight, N and K, or K and N if it is transposed.
struct Product4 {
  const void* A;
  const uint8_t* B;
  const void* bias;
  void* out;
  float* workspace;  // of the sums where blocks share the depth of a tile, or null
  const int64_t* ends;
  int64_t E, M, N, K;
  uint32_t row_tiles;  // of the grid, whose blocks are numbered width tile by width tile
  int staged;          // steps of the depth in shared memory (tiles), or columns of A (gemv_4bit)
  Scales4 scales;
  Values16 table;
  bool aligned_rows;    // of A: 16-byte loads are possible
  bool aligned_weight;  // rows begin with a unit, at an address that is a multiple of 16
};

inline int log2_or_minus_1(int64_t n) {
  int shift = 0;
  while (shift < 62 && n > int64_t{1} << shift) ++shift;  // the largest power in an int64_t
  return n == int64_t{1} << shift ? shift : -1;
}

inline Product4 make_product(const void* A, DType dtype, int64_t M, const int64_t* ends, int64_t E,
                             int64_t N, int64_t K, const uint8_t* B, const BlockScales& scales,
                             QuantType quant_type, const void* bias, void* out, bool transposed) {
  Product4 p{};
  p.A = A, p.B = B, p.bias = bias, p.out = out;
  p.ends = ends, p.E = E, p.M = M, p.N = N, p.K = K;
  p.scales = {scales.absmax,
              scales.absmax_8bit,
              scales.absmax_code,
              scales.absmax_offset,
              scales.absmax_blocksize,
              log2_or_minus_1(scales.blocksize),
              -1};
  if (scales.absmax_8bit != nullptr) {
    p.scales.absmax_shift = log2_or_minus_1(scales.absmax_blocksize);
  }
  const Codebook4& book = quant_type == QuantType::kNF4 ? kNF4 : kFP4;
  for (int i = 0; i < 16; ++i) p.table.values[i] = book.values[i];
  const int64_t row_bytes = (transposed ? N : K) * (dtype == DType::kFloat32 ? 4 : 2);
  p.aligned_rows = (reinterpret_cast<uintptr_t>(A) | static_cast<uintptr_t>(row_bytes)) % 16 == 0;
  p.aligned_weight = reinterpret_cast<uintptr_t>(B) % 16 == 0 && K % kUnit == 0;
  return p;
}

// What chooses the kernel of a product with one weight.
inline Product4 sizes_of_product(int64_t M, int64_t N, int64_t K) {
  Product4 p{};
  p.E = 1, p.M = M, p.N = N, p.K = K;
  return p;
}

// Tiles of `size` rows that cover the groups of any `ends`, and the rows behind the last group: a
// group takes at most one tile more than its rows fill, and none if it is empty.
inline int64_t count_row_tiles(const Product4& p, int64_t size) {
  if (p.ends == nullptr) return ceil_div(p.M, size);
  return p.M / size + (p.E + 1 < p.M ? p.E + 1 : p.M);
}

// Rows [begin, end) of A and the weight that they are multiplied with. E stands for none: these
// rows become zeros. A tile without work has begin == end.
struct RowTile {
  int64_t expert, begin, end;
};

// The tile number `tile` of the grid. The ends come from the device, where nobody has checked them:
// each is taken for a number from the one before to M. All lanes of a group must call.
__device__ inline RowTile find_row_tile(const Product4& p, int64_t tile, int64_t size) {
  if (p.ends == nullptr) {
    const int64_t begin = tile * size;
    return {0, begin, begin + size < p.M ? begin + size : p.M};
  }
  const int lane = static_cast<int>(threadIdx.x % kGroup);
  int64_t before = 0;  // the end of the last expert seen
  for (int64_t first = 0; first <= p.E; first += kGroup) {
    const int64_t expert = first + lane;
    int64_t end = expert < p.E ? p.ends[expert] : p.M;
    if (end > p.M) end = p.M;
    if (end < before) end = before;
    for (int step = 1; step < kGroup; step *= 2) {
      const int64_t left = shuffle(end, lane < step ? lane : lane - step);
      if (end < left) end = left;
    }
    int64_t begin = shuffle(end, lane == 0 ? 0 : lane - 1);
    if (lane == 0) begin = before;
    const int64_t count = (end - begin + size - 1) / size;
    int64_t counted = count;
    for (int step = 1; step < kGroup; step *= 2) {
      const int64_t left = shuffle(counted, lane < step ? lane : lane - step);
      if (lane >= step) counted += left;
    }
    const int64_t inside = tile - (counted - count);
    const bool found = 0 <= inside && inside < count;
    if (any(found)) {
      begin += inside * size;
      if (end > begin + size) end = begin + size;
      return {group_sum(found ? expert : 0), group_sum(found ? begin : 0),
              group_sum(found ? end : 0)};
    }
    tile -= shuffle(counted, kGroup - 1);
    before = shuffle(end, kGroup - 1);
  }
  return {p.E, 0, 0};
}

// Where a table with 2^kShift bytes for each entry has what is `copy_offset` bytes into the entry
// for the byte number `byte` of a word of codes, put together without a multiplication.
template <int kShift>
__device__ inline uint32_t entry_offset(uint32_t word, int byte, uint32_t copy_offset) {
  const int shift = 8 * byte - kShift;
  const uint32_t shifted = shift < 0 ? word << -shift : word >> shift;
  return (shifted & 255u << kShift) | copy_offset;
}

// The values of two codes in a byte, for every byte, in shared memory. There are kCopies of each
// pair side by side, and lanes use different ones: with 16 copies no two lanes that the hardware
// serves at a time meet in a bank. A table of 16 entries would give half as much per access.
template <int kCopies>
struct PairTable {
  struct alignas(8) Pair {
    float first, second;
  };
  static constexpr int kBytes = 256 * kCopies * static_cast<int>(sizeof(Pair));

  Pair* pairs;

  // All threads of the block take part; a barrier has to follow.
  __device__ void fill(Indexed<Values16> table) const {
    for (int i = static_cast<int>(threadIdx.x); i < 256 * kCopies;
         i += static_cast<int>(blockDim.x)) {
      const int byte = i / kCopies;
      pairs[i] = {table.values[byte >> 4], table.values[byte & 15]};
    }
  }

  __device__ Pair operator()(uint32_t byte) const {
    return pairs[byte * kCopies + threadIdx.x % kCopies];
  }

  // Of the byte number `byte` of a word of codes.
  __device__ Pair pair_of(uint32_t word, int byte) const {
    static_assert(kCopies == 16 || kCopies == 4);
    const uint32_t at =
        entry_offset<kCopies == 16 ? 7 : 5>(word, byte, threadIdx.x % kCopies * sizeof(Pair));
    return *reinterpret_cast<const Pair*>(reinterpret_cast<const unsigned char*>(pairs) + at);
  }
};

// The same for a type of 16 bits, to which the values are rounded: a pair is a word, and each lane
// has a copy of its own.
template <class T>
struct WordTable {
  static constexpr int kBytes = 256 * kGroup * 4;

  uint32_t* pairs;

  __device__ void fill(Indexed<Values16> table) const {
    for (int byte = static_cast<int>(threadIdx.x); byte < 256;
         byte += static_cast<int>(blockDim.x)) {
      const uint32_t pair = pack(table.values[byte >> 4], table.values[byte & 15], T{});
      // Threads begin at different copies, and so in different banks.
      for (int i = 0; i < kGroup; ++i) pairs[byte * kGroup + (i + byte) % kGroup] = pair;
    }
  }

  __device__ uint32_t pair_of(uint32_t word, int byte) const {
    const uint32_t at = entry_offset<7>(word, byte, threadIdx.x % kGroup * 4);
    return *reinterpret_cast<const uint32_t*>(reinterpret_cast<const unsigned char*>(pairs) + at);
  }
};

}  // namespace bnbx::gpu
