// quantize_4bit: the tiles of quantize_tile.h with the encoder of encode_4bit.h.
#include "cuda/encode_4bit.h"
#include "cuda/quantize_tile.h"

namespace bnbx {

void quantize_4bit(const void* A, DType dtype, int64_t n, int64_t blocksize, QuantType quant_type,
                   uint8_t* out, float* absmax, Stream stream) {
  gpu::with_type(dtype, [&](auto type) {
    using T = decltype(type);
    gpu::with_encoder(quant_type, [&](auto* encoder) {
      using Encoder = std::remove_pointer_t<decltype(encoder)>;
      const T* values = static_cast<const T*>(A);
      gpu::in_quantize_tiles<4>(values, out, n, [&](auto whole, int64_t begin, int64_t end) {
        gpu::launch<gpu::quantize_tiles<whole.value, T, Encoder>>(
            gpu::quantize_blocks<T>(end - begin), gpu::kQuantizeThreads, 0, stream, values, begin,
            end, gpu::log2_of(blocksize), gpu::codebook(quant_type), out, absmax);
      });
    });
  });
}

}  // namespace bnbx
