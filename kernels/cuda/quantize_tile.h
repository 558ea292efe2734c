// Quantization in blocks of 32 to 4096 elements, a power of two: absmax of each block, then the
// codes, with the elements in registers in between.
//
// A vector is 16 bytes of elements in one thread. A group of 32 lanes has a segment of 32 vectors:
// several blocks, whose absmax parts of the group find by shuffles, or a part of a block, which
// meets the others in shared memory.
#pragma once

#include "common/codebooks.h"
#include "cuda/elements.h"

namespace bnbx::gpu {

static constexpr int kQuantizeThreads = 256;
static constexpr int kQuantizeVectors = 4;  // of a thread
// Blocks of threads on a multiprocessor: as many as have registers without spilling them.
static constexpr int kQuantizeResident = 4;

// Elements that a block of threads quantizes at a time.
template <class T>
static constexpr int kQuantizeTile = kQuantizeThreads * kQuantizeVectors * kPerVector<T>;

// Bits of the magnitude: they order like the magnitudes, NaN above infinity above the finite.
template <class T>
__device__ inline uint32_t magnitude_bits(T x) {
  return float_bits(to_float(x)) & 0x7fffffffu;
}

// The largest magnitude, given by its bits; NaN unless it is finite.
__device__ inline float finite_magnitude(uint32_t bits) {
  return bits_float(bits >= 0x7f800000u ? 0x7fc00000u : bits);
}

// The inverse of a magnitude that stays finite.
__device__ inline float inverse_magnitude(float magnitude) {
  return 1.0f / (magnitude > kSmallestAbsmax ? magnitude : kSmallestAbsmax);
}

// The codes that nearest() returns for the values times `inverse`, as they lie in memory: of 4
// bits, the first of two is in the high nibble.
template <int kBits, int kCount, class Nearest>
__device__ inline Word<kCount * kBits / 8> encode(const float (&values)[kCount], float inverse,
                                                  Nearest&& nearest) {
  constexpr int kPerWord = kCount * kBits < 32 ? kCount : 32 / kBits;
  uint64_t codes = 0;
  for (int first = kCount - kPerWord; first >= 0; first -= kPerWord) {
    uint32_t word = 0;
    for (int k = kPerWord - 1; k >= 0; --k) {
      const int i = first + (kBits == 4 ? k ^ 1 : k);
      word = (word << kBits) + nearest(values[i] * inverse);
    }
    codes = codes << 32 | word;
  }
  return static_cast<Word<kCount * kBits / 8>>(codes);
}

template <class T>
struct QuantizeLayout {
  static constexpr int kCount = kPerVector<T>;
  static constexpr int kVectors = kQuantizeVectors;
  static constexpr int kSegment = kGroup * kCount;
  static constexpr int kSegments = kQuantizeTile<T> / kSegment;

  // Position of a thread's vector in the tile.
  __device__ static int position(int vector) {
    return segment(vector) * kSegment + static_cast<int>(threadIdx.x) % kGroup * kCount;
  }
  __device__ static int segment(int vector) {
    return static_cast<int>(threadIdx.x) / kGroup * kVectors + vector;
  }
};

// Makes of the largest magnitude of each vector that of its block.
template <class T>
__device__ inline void join_blocks(uint32_t (&largest)[QuantizeLayout<T>::kVectors], int blocksize,
                                   uint32_t* segments) {
  using Layout = QuantizeLayout<T>;
  const int lanes = min(blocksize / Layout::kCount, kGroup);
  for (int mask = 1; mask < lanes; mask *= 2) {
    for (uint32_t& x : largest) x = max(x, shuffle_xor(x, mask));
  }
  const int joined = blocksize / Layout::kSegment;
  if (joined <= 1) return;
  __syncthreads();  // the segments of the tile before have been read
  if (threadIdx.x % kGroup == 0) {
    for (int v = 0; v < Layout::kVectors; ++v) segments[Layout::segment(v)] = largest[v];
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kGroup;
  for (int v = 0; v < Layout::kVectors; ++v) {
    const int first = Layout::segment(v) & -joined;
    largest[v] = group_max(segments[first + (lane & (joined - 1))]);
  }
}

template <bool kWhole, class T, class Encoder>
__device__ inline void quantize_tile(const T* A, int n, int shift, const Encoder& encoder,
                                     uint32_t* segments, uint8_t* out, float* absmax) {
  using Layout = QuantizeLayout<T>;
  constexpr int kCount = Layout::kCount, kBits = Encoder::kBits;
  Vector<T, kCount> x[Layout::kVectors];
  uint32_t largest[Layout::kVectors] = {};
  float values[kCount];
  for (int v = 0; v < Layout::kVectors; ++v) {
    x[v] = load_elements<kWhole, kCount>(A, Layout::position(v), n);
  }
  for (int v = 0; v < Layout::kVectors; ++v) {
    to_floats(x[v], values);
    for (float value : values) largest[v] = max(largest[v], magnitude_bits(value));
  }
  join_blocks<T>(largest, 1 << shift, segments);
  for (int v = 0; v < Layout::kVectors; ++v) {
    const int i = Layout::position(v);
    const float scale = finite_magnitude(largest[v]);
    if ((i & ((1 << shift) - 1)) == 0 && (kWhole || i < n)) absmax[i >> shift] = scale;
    Word<kCount * kBits / 8> codes = 0;  // a NaN decodes to NaN whatever the codes are
    if (scale == scale) {
      to_floats(x[v], values);
      codes = encode<kBits>(values, inverse_magnitude(scale), encoder);
    }
    store_codes<kWhole, kCount * kBits / 8>(out, i * kBits / 8, (n * kBits + 7) / 8, codes);
  }
}

// Quantizes the tiles of a block of threads among those of the elements [begin, end).
template <bool kWhole, class T, class Encoder>
__device__ inline void quantize_share(const T* A, int64_t begin, int64_t end, int shift,
                                      const Encoder& encoder, uint32_t* segments, uint8_t* out,
                                      float* absmax) {
  constexpr int kTile = kQuantizeTile<T>;
  for (int64_t number = begin / kTile + blockIdx.x; number * kTile < end; number += gridDim.x) {
    const Tile tile = tile_at<kTile>(number, end);
    quantize_tile<kWhole>(A + tile.first, kWhole ? kTile : tile.count, shift, encoder, segments,
                          out + tile.first * Encoder::kBits / 8, absmax + (tile.first >> shift));
  }
}

template <bool kWhole, class T, class Encoder>
__global__ void __launch_bounds__(kQuantizeThreads, kQuantizeResident)
    quantize_tiles(const T* A, int64_t begin, int64_t end, int shift,
                   typename Encoder::Source source, uint8_t* out, float* absmax) {
  __shared__ Encoder encoder;
  __shared__ uint32_t segments[QuantizeLayout<T>::kSegments];
  encoder.fill(source);
  __syncthreads();
  quantize_share<kWhole>(A, begin, end, shift, encoder, segments, out, absmax);
}

// Blocks of threads that go from tile to tile: what fills the device, and no more than there are.
template <class T>
unsigned quantize_blocks(int64_t n) {
  const int64_t tiles = ceil_div(n, kQuantizeTile<T>);
  const int64_t resident = int64_t{kQuantizeResident} * multiprocessors();
  return static_cast<unsigned>(tiles < resident ? tiles : resident);
}

// Calls launch(whole, begin, end) as in_tiles() does, for elements of T and their codes.
template <int kBits, class T, class Launch>
void in_quantize_tiles(const T* A, const uint8_t* codes, int64_t n, Launch&& launch) {
  const bool aligned = is_aligned(A, 16) && is_aligned(codes, kPerVector<T> * kBits / 8);
  in_tiles(n, kQuantizeTile<T>, aligned, launch);
}

}  // namespace bnbx::gpu
