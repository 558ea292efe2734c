// dequantize_blockwise: a thread takes as many codes as make 16 bytes of output, several times; the
// codebook is in shared memory.
#include "cuda/elements.h"

namespace bnbx {
namespace gpu {
namespace {

constexpr int kThreads = 256;  // and entries of a codebook
constexpr int kVectors = 4;    // of a thread, under way at the same time

// Elements that a block of threads decodes.
template <class T>
constexpr int kTile = kThreads * kVectors * kPerVector<T>;

// scale_of(i) is called for the first element of each vector, or for each element.
template <bool kWhole, bool kInBlocks, class T, class ScaleOf>
__device__ inline void decode_tile(const uint8_t* A, int n, const float* code, float* table, T* out,
                                   ScaleOf&& scale_of) {
  constexpr int kCount = kPerVector<T>;
  const int first = static_cast<int>(threadIdx.x) * kCount;
  Word<kCount> codes[kVectors];
  float scales[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kThreads * kCount;
    codes[v] = load_codes<kWhole, kCount>(A, i, n);
    if (kInBlocks) scales[v] = kWhole || i < n ? scale_of(i) : 0.0f;
  }
  table[threadIdx.x] = code[threadIdx.x];
  __syncthreads();
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kThreads * kCount;
    Vector<T, kCount> decoded{};
    for (int k = 0; k < kCount; ++k) {
      float scale = 0.0f;
      if (kInBlocks) {
        scale = scales[v];
      } else if (kWhole || i + k < n) {
        scale = scale_of(i + k);
      }
      from_float(table[codes[v] >> 8 * k & 255] * scale, &decoded.values[k]);
    }
    store_elements<kWhole>(out, i, n, decoded);
  }
}

// Blocks of 2^shift elements, at least 8, so that no vector crosses from one to the next.
template <bool kWhole, class T>
__global__ void __launch_bounds__(kThreads)
    dequantize(const uint8_t* A, const float* absmax, int64_t begin, int64_t end, const float* code,
               int shift, T* out) {
  __shared__ float table[kThreads];
  const Tile tile = tile_at<kTile<T>>(begin / kTile<T> + blockIdx.x, end);
  absmax += tile.first >> shift;
  const int within = min(shift, 31);  // of a tile
  decode_tile<kWhole, true>(A + tile.first, tile.count, code, table, out + tile.first,
                            [&](int i) { return absmax[i >> within]; });
}

template <bool kWhole, class T>
__global__ void __launch_bounds__(kThreads)
    dequantize_any(const uint8_t* A, const float* absmax, int64_t begin, int64_t end,
                   const float* code, int64_t blocksize, T* out) {
  __shared__ float table[kThreads];
  const Tile tile = tile_at<kTile<T>>(begin / kTile<T> + blockIdx.x, end);
  const BlockOf<kTile<T>> block_of(tile.first, blocksize);
  decode_tile<kWhole, false>(A + tile.first, tile.count, code, table, out + tile.first,
                             [&](int i) { return absmax[block_of(i)]; });
}

}  // namespace
}  // namespace gpu

void dequantize_blockwise(const uint8_t* A, const float* absmax, int64_t n, const float* code,
                          int64_t blocksize, void* out, DType dtype, Stream stream) {
  const int shift = gpu::log2_of(blocksize);
  gpu::with_type(dtype, [&](auto type) {
    using T = decltype(type);
    T* values = static_cast<T*>(out);
    const bool aligned = gpu::is_aligned(A, gpu::kPerVector<T>) && gpu::is_aligned(values, 16);
    gpu::in_tiles(n, gpu::kTile<T>, aligned, [&](auto whole, int64_t begin, int64_t end) {
      const auto blocks = static_cast<unsigned>(gpu::ceil_div(end - begin, gpu::kTile<T>));
      if (shift >= 3) {
        gpu::launch<gpu::dequantize<whole.value, T>>(blocks, gpu::kThreads, 0, stream, A, absmax,
                                                     begin, end, code, shift, values);
      } else {
        gpu::launch<gpu::dequantize_any<whole.value, T>>(
            blocks, gpu::kThreads, 0, stream, A, absmax, begin, end, code, blocksize, values);
      }
    });
  });
}

}  // namespace bnbx
