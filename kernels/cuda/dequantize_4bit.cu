// dequantize_4bit: a thread takes as many codes as make 16 bytes of output, several times.
#include "cuda/decode_4bit.h"
#include "cuda/elements.h"

namespace bnbx {
namespace gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = 4;  // of a thread, under way at the same time

// Elements that a block of threads decodes.
template <class T>
constexpr int kTile = kThreads * kVectors * kPerVector<T>;

template <bool kWhole, class T>
__device__ inline void decode_tile(const uint8_t* A, const float* absmax, int n, int shift,
                                   const Values4& values, float* table, T* out) {
  constexpr int kCount = kPerVector<T>;
  const int first = static_cast<int>(threadIdx.x) * kCount;
  Word<kCount / 2> codes[kVectors];
  float scales[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kThreads * kCount;
    codes[v] = load_codes<kWhole, kCount / 2>(A, i >> 1, (n + 1) >> 1);
    scales[v] = kWhole || i < n ? absmax[i >> shift] : 0.0f;
  }
  fill_table(values, table);
  __syncthreads();
  for (int v = 0; v < kVectors; ++v) {
    store_elements<kWhole>(out, first + v * kThreads * kCount, n,
                           decode<T, kCount>(codes[v], table, scales[v]));
  }
}

// Blocks have 2^shift elements, from 32 to 4096: no vector and no tile ends within one.
template <bool kWhole, class T>
__global__ void __launch_bounds__(kThreads)
    dequantize(const uint8_t* A, const float* absmax, int64_t begin, int64_t end, int shift,
               Values4 values, T* out) {
  __shared__ float table[16];
  const Tile tile = tile_at<kTile<T>>(begin / kTile<T> + blockIdx.x, end);
  decode_tile<kWhole>(A + tile.first / 2, absmax + (tile.first >> shift), tile.count, shift, values,
                      table, out + tile.first);
}

}  // namespace
}  // namespace gpu

void dequantize_4bit(const uint8_t* A, const float* absmax, int64_t n, int64_t blocksize,
                     QuantType quant_type, void* out, DType dtype, Stream stream) {
  gpu::with_type(dtype, [&](auto type) {
    using T = decltype(type);
    T* values = static_cast<T*>(out);
    const bool aligned = gpu::is_aligned(A, gpu::kPerVector<T> / 2) && gpu::is_aligned(values, 16);
    gpu::in_tiles(n, gpu::kTile<T>, aligned, [&](auto whole, int64_t begin, int64_t end) {
      gpu::launch<gpu::dequantize<whole.value, T>>(
          static_cast<unsigned>(gpu::ceil_div(end - begin, gpu::kTile<T>)), gpu::kThreads, 0,
          stream, A, absmax, begin, end, gpu::log2_of(blocksize), gpu::values_of(quant_type),
          values);
    });
  });
}

}  // namespace bnbx
