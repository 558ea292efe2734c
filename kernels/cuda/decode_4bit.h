// What the kernels that read 4-bit tensors share: codes to values, and the scales of blocks.
#pragma once

#include "common/codebooks.h"
#include "cuda/device.h"

namespace bnbx::gpu {

inline Codebook4 codebook(QuantType quant_type) {
  return quant_type == QuantType::kNF4 ? kNF4 : kFP4;
}

// The values of a 4-bit type by their code, as an argument of a kernel.
struct Values4 {
  float values[16];
};

inline Values4 values_of(QuantType quant_type) {
  const Codebook4 book = codebook(quant_type);
  Values4 out;
  for (int i = 0; i < 16; ++i) out.values[i] = book.values[i];
  return out;
}

// Fills a table of 16 floats in shared memory; a __syncthreads() must follow. Each value has a bank
// of its own, so that lanes with different codes do not wait for each other.
__device__ inline void fill_table(const Values4& from, float* table) {
  if (threadIdx.x < 16) table[threadIdx.x] = from.values[threadIdx.x];
}

// The i-th of the 8 codes of a word that was loaded from packed codes: two to a byte, the first in
// the high nibble.
__device__ inline uint32_t code_in(uint32_t word, int i) { return word >> (i ^ 1) * 4 & 15; }

// The first kCount codes of a word as values times their scale, rounded to T.
template <class T, int kCount>
__device__ inline Vector<T, kCount> decode(uint32_t word, const float* table, float scale) {
  Vector<T, kCount> out;
  for (int i = 0; i < kCount; ++i) from_float(table[code_in(word, i)] * scale, &out.values[i]);
  return out;
}

// Scale of block i; see BlockScales.
__device__ inline float scale_of(const BlockScales& scales, int64_t i) {
  if (scales.absmax_8bit == nullptr) return scales.absmax[i];
  return scales.absmax_code[scales.absmax_8bit[i]] * scales.absmax[i / scales.absmax_blocksize] +
         *scales.absmax_offset;
}

}  // namespace bnbx::gpu
