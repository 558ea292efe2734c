// The nearest of 16 levels, in one comparison.
//
// [-1, 1] is divided into 32 cells, so that no cell has more than one of the boundaries between
// levels. A table in shared memory has, for each cell, the boundary and what stands for the level
// below it and for the one above. 32 entries lie in 32 banks: lanes never wait for each other.
#pragma once

#include "common/codebooks.h"
#include "cuda/decode_4bit.h"
#include "cuda/elements.h"

namespace bnbx::gpu {

template <QuantType kType>
class Encoder4 {
 public:
  static constexpr int kBits = 4;  // of a code
  using Source = Codebook4;

  // Fills the tables, with codes; a __syncthreads() must follow.
  __device__ void fill(const Codebook4& book) {
    fill(book, [&](int position) { return static_cast<uint32_t>(book.code_at[position]); });
  }

  // The same with the bits of the levels.
  __device__ void fill_levels(const Codebook4& book) {
    fill(book, [&](int position) { return float_bits(book.values[book.code_at[position]]); });
  }

  // What stands for the nearest level. |x| may be above 1 by a rounding error; see clamped().
  __device__ uint32_t operator()(float x) const {
    uint32_t at = cell_of(x);
    if (x > bits_float(entry(at))) at += kRow;
    return entry(at + kRow);
  }

  // Any number as one in [-1, 1] that has the same nearest level: NaN has the lowest.
  __device__ static float clamped(float x) { return fminf(fmaxf(x, -1.0f), 1.0f); }

 private:
  // Cells are numbered by the bytes of the entries before theirs: the address is a sum then, which
  // saves two of the eleven instructions that an element takes.
  static constexpr uint32_t kEntry = sizeof(uint32_t), kCells = 32, kRow = kCells * kEntry;
  static constexpr float kCellsPerUnit = 15.25f;
  // Adding it leaves the rounded sum in the low bits of a float, from 0 on.
  static constexpr float kRound = 12582912.0f + 15.0f;  // 1.5 * 2^23

  // Ascends with x, which is all that matters. fp4 has boundaries just below 0, at 0 and just above
  // it: what is above 0 is moved up by a cell.
  __device__ static uint32_t cell_of(float x) {
    if (kType == QuantType::kFP4 && x > 0.0f) x += 1.0f / kCellsPerUnit;
    return float_bits(fmaf(x, kCellsPerUnit, kRound)) * kEntry & (kRow - kEntry);
  }

  __device__ uint32_t entry(uint32_t at) const {
    return *reinterpret_cast<const uint32_t*>(reinterpret_cast<const char*>(table_) + at);
  }

  template <class Meaning>
  __device__ void fill(const Codebook4& book, Meaning&& meaning) {
    const uint32_t cell = threadIdx.x;
    if (cell >= kCells) return;
    int below = 0;  // boundaries in the cells before this one
    float bound = 2.0f;
    for (int i = 14; i >= 0;
         --i) {  // the lowest one wins: fp4's at 0 ends a cell, and parts nothing
      const uint32_t at = cell_of(book.bounds[i]);
      if (at < cell * kEntry) ++below;
      if (at == cell * kEntry) bound = book.bounds[i];
    }
    table_[cell] = float_bits(bound);
    table_[cell + kCells] = meaning(below);
    table_[cell + 2 * kCells] = meaning(below < 15 ? below + 1 : 15);
  }

  uint32_t table_[3 * kCells];  // the boundary in each cell, what is below it, what is above it
};

// Calls `work` with the type of the encoder.
template <class Work>
void with_encoder(QuantType quant_type, Work&& work) {
  if (quant_type == QuantType::kNF4) {
    work(static_cast<Encoder4<QuantType::kNF4>*>(nullptr));
  } else {
    work(static_cast<Encoder4<QuantType::kFP4>*>(nullptr));
  }
}

}  // namespace bnbx::gpu
