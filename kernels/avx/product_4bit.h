// The arguments of a product with a 4-bit weight, of all of its output or of some of its columns.
#pragma once

#include "bnbx/kernels.h"

namespace bnbx::cpu {

// gemm_4bit: out (M, N) = A (M, K) times the transpose of the weight (N, K), plus bias.
// gemm_4bit_transposed: out (M, K) = A (M, N) times the weight; without bias.
struct Product4 {
  const void* A;
  DType dtype;
  int64_t M, N, K;
  const uint8_t* B;
  const BlockScales& scales;
  QuantType quant_type;
  const void* bias;
  void* out;
  int64_t first_row;   // of the weight within B and the scales, which may be those of a stack
  int64_t begin, end;  // columns of the output to compute; others are not touched
};

}  // namespace bnbx::cpu
