// quantize_blockwise: the tiles of quantize_tile.h with the encoders of encode_8bit.h; blocks of
// other sizes in passes over the tensor.
#include "cuda/encode_8bit.h"
#include "cuda/quantize_tile.h"

namespace bnbx {
namespace gpu {
namespace {

constexpr int kThreads = kQuantizeThreads;
constexpr int kTile = 4096;  // of the passes

// Elements for each multiprocessor from which on the table of cells is worth its making.
constexpr int64_t kManyElements = 1 << 15;

template <bool kWhole, class T>
__global__ void __launch_bounds__(kThreads, kQuantizeResident)
    quantize_by_cells(const T* A, int64_t begin, int64_t end, int shift, const float* code,
                      uint8_t* out, float* absmax) {
  __shared__ Nearest256 nearest;
  __shared__ Encoder8 tree;
  __shared__ uint32_t segments[QuantizeLayout<T>::kSegments];
  nearest.build(code);
  if (nearest.steps() == 0) {
    quantize_share<kWhole>(A, begin, end, shift, CellEncoder8{nearest}, segments, out, absmax);
    return;
  }
  tree.fill(code);
  __syncthreads();
  quantize_share<kWhole>(A, begin, end, shift, tree, segments, out, absmax);
}

__global__ void clear(uint32_t* magnitudes, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) magnitudes[i] = 0;
}

// Raises the largest magnitude of each block, given by its bits.
template <class T>
__global__ void __launch_bounds__(kThreads)
    raise_magnitudes(const T* A, int64_t n, int64_t blocksize, uint32_t* magnitudes) {
  const Tile tile = tile_at<kTile>(blockIdx.x, n);
  const BlockOf<kTile> block_of(tile.first, blocksize);
  const bool in_one = block_of(0) == block_of(tile.count - 1);
  const bool leads = threadIdx.x % kGroup == 0;
  uint32_t largest = 0;
  for (int start = 0; start < tile.count; start += kThreads) {
    const int i = min(start + static_cast<int>(threadIdx.x), tile.count - 1);
    largest = max(largest, magnitude_bits(A[tile.first + i]));
    if (in_one) continue;
    const int64_t block = block_of(i);
    const bool apart = any(block != shuffle(block, 0));
    if (!apart) largest = group_max(largest);
    if (apart || leads) atomicMax(magnitudes + block, largest);
    largest = 0;
  }
  if (!in_one) return;
  largest = group_max(largest);
  if (leads) atomicMax(magnitudes + block_of(0), largest);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    encode_any(const T* A, int64_t n, int64_t blocksize, const float* code, uint8_t* out,
               float* absmax) {
  __shared__ Encoder8 encoder;
  encoder.fill(code);
  __syncthreads();
  const Tile tile = tile_at<kTile>(blockIdx.x, n);
  const BlockOf<kTile> block_of(tile.first, blocksize);
  for (int i = static_cast<int>(threadIdx.x); i < tile.count; i += kThreads) {
    const int64_t at = tile.first + i, block = block_of(i);
    // Infinity may become NaN while others read it: to them it is the same.
    const float scale = finite_magnitude(float_bits(absmax[block]));
    if (at == block * blocksize) absmax[block] = scale;
    out[at] = 0;
    if (scale == scale) {
      out[at] = static_cast<uint8_t>(encoder(to_float(A[at]) * inverse_magnitude(scale)));
    }
  }
}

template <class T>
void quantize_in_passes(const T* A, int64_t n, const float* code, int64_t blocksize, uint8_t* out,
                        float* absmax, Stream stream) {
  auto* magnitudes = reinterpret_cast<uint32_t*>(absmax);
  const int64_t count = n / blocksize + (n % blocksize != 0);
  const auto tiles = static_cast<unsigned>(ceil_div(n, kTile));
  launch<clear>(static_cast<unsigned>(ceil_div(count, kThreads)), kThreads, 0, stream, magnitudes,
                count);
  launch<raise_magnitudes<T>>(tiles, kThreads, 0, stream, A, n, blocksize, magnitudes);
  launch<encode_any<T>>(tiles, kThreads, 0, stream, A, n, blocksize, code, out, absmax);
}

}  // namespace
}  // namespace gpu

void quantize_blockwise(const void* A, DType dtype, int64_t n, const float* code, int64_t blocksize,
                        uint8_t* out, float* absmax, Stream stream) {
  if (n == 0) return;
  const int shift = gpu::log2_of(blocksize);
  gpu::with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* values = static_cast<const T*>(A);
    if (shift >= 5 && shift <= 12) {
      gpu::in_quantize_tiles<8>(values, out, n, [&](auto whole, int64_t begin, int64_t end) {
        const bool many = end - begin >= gpu::kManyElements * gpu::multiprocessors();
        const auto blocks = gpu::quantize_blocks<T>(end - begin);
        if (many) {
          gpu::launch<gpu::quantize_by_cells<whole.value, T>>(blocks, gpu::kQuantizeThreads, 0,
                                                              stream, values, begin, end, shift,
                                                              code, out, absmax);
        } else {
          gpu::launch<gpu::quantize_tiles<whole.value, T, gpu::Encoder8>>(
              blocks, gpu::kQuantizeThreads, 0, stream, values, begin, end, shift, code, out,
              absmax);
        }
      });
    } else {
      gpu::quantize_in_passes(values, n, code, blocksize, out, absmax, stream);
    }
  });
}

}  // namespace bnbx
