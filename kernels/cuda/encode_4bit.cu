// encode_4bit: the nearest of 16 levels at scales that are given, of either sign.
#include "cuda/encode_4bit.h"
#include "cuda/quantize_tile.h"

namespace bnbx {
namespace gpu {
namespace {

template <bool kWhole, class T, class Encoder>
__device__ inline void encode_tile(const T* A, const float* absmax, int n, int shift,
                                   const Encoder& encoder, uint8_t* out) {
  using Layout = QuantizeLayout<T>;
  constexpr int kCount = Layout::kCount;
  Vector<T, kCount> x[Layout::kVectors];
  float scales[Layout::kVectors];
  for (int v = 0; v < Layout::kVectors; ++v) {
    const int i = Layout::position(v);
    x[v] = load_elements<kWhole, kCount>(A, i, n);
    scales[v] = kWhole || i < n ? absmax[i >> shift] : 0.0f;
  }
  for (int v = 0; v < Layout::kVectors; ++v) {
    Word<kCount / 2> codes = 0;  // a NaN decodes to NaN whatever the codes are
    if (scales[v] == scales[v]) {
      float values[kCount];
      to_floats(x[v], values);
      const float inverse = inverse_magnitude(fabsf(scales[v]));
      codes = encode<4>(values, scales[v] < 0.0f ? -inverse : inverse,
                        [&](float scaled) { return encoder(Encoder::clamped(scaled)); });
    }
    store_codes<kWhole, kCount / 2>(out, Layout::position(v) / 2, (n + 1) / 2, codes);
  }
}

template <bool kWhole, class T, class Encoder>
__global__ void __launch_bounds__(kQuantizeThreads, kQuantizeResident)
    encode_tiles(const T* A, const float* absmax, int64_t begin, int64_t end, int shift,
                 Codebook4 book, uint8_t* out) {
  constexpr int kTile = kQuantizeTile<T>;
  __shared__ Encoder encoder;
  encoder.fill(book);
  __syncthreads();
  for (int64_t number = begin / kTile + blockIdx.x; number * kTile < end; number += gridDim.x) {
    const Tile tile = tile_at<kTile>(number, end);
    encode_tile<kWhole>(A + tile.first, absmax + (tile.first >> shift), kWhole ? kTile : tile.count,
                        shift, encoder, out + tile.first / 2);
  }
}

}  // namespace
}  // namespace gpu

void encode_4bit(const void* A, DType dtype, int64_t n, const float* absmax, int64_t blocksize,
                 QuantType quant_type, uint8_t* out, Stream stream) {
  gpu::with_type(dtype, [&](auto type) {
    using T = decltype(type);
    gpu::with_encoder(quant_type, [&](auto* encoder) {
      using Encoder = std::remove_pointer_t<decltype(encoder)>;
      const T* values = static_cast<const T*>(A);
      gpu::in_quantize_tiles<4>(values, out, n, [&](auto whole, int64_t begin, int64_t end) {
        gpu::launch<gpu::encode_tiles<whole.value, T, Encoder>>(
            gpu::quantize_blocks<T>(end - begin), gpu::kQuantizeThreads, 0, stream, values, absmax,
            begin, end, gpu::log2_of(blocksize), gpu::codebook(quant_type), out);
      });
    });
  });
}

}  // namespace bnbx
