// NEON with the matrix products of Armv8.6, of int8 (I8MM) and of bf16 (BF16). The two are one
// instruction set here, because no processor is known that has only one of them.
#include "avx/gemm_4bit_mmla.h"
#include "avx/int8_product_mmla.h"
#include "avx/kernels_of.h"
#include "avx/vec_neon_dotprod.h"

namespace bnbx {
namespace neon_mmla {

struct MatrixProduct;

struct Vec : neon::DotVec<MatrixProduct> {
  using neon::DotVec<MatrixProduct>::store;
  static void store(bfloat16* p, neon::F32 a) {
    const bfloat16x8_t rounded = vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(a.low), a.high);
    vst1q_u16(&p->bits, vreinterpretq_u16_bf16(rounded));
  }
};

static void gemm_4bit(const cpu::Product4& p) {
  if (!cpu::gemm_4bit_mmla<Vec>(p)) cpu::gemm_4bit<Vec>(p);
}

static void gemm_4bit_transposed(const cpu::Product4& p) {
  if (!cpu::gemm_4bit_transposed_mmla<Vec>(p)) cpu::gemm_4bit_transposed<Vec>(p);
}

static constexpr KernelTable make_table() {
  using Product = cpu::PairProduct<Vec>;
  KernelTable table = cpu::table_of<Vec>();
  table.gemm_4bit = &gemm_4bit;
  table.gemm_4bit_transposed = &gemm_4bit_transposed;
  table.int8_linear_matmul = &cpu::int8_linear_matmul<Vec, Product>;
  table.int8_scaled_mm = &cpu::int8_scaled_mm<Vec, Product>;
  table.int8_mixed_scaled_mm = &cpu::int8_mixed_scaled_mm<Vec, Product>;
  table.int8_linear = &cpu::int8_linear<Vec, Product>;
  return table;
}

extern const KernelTable kTable = make_table();

}  // namespace neon_mmla
}  // namespace bnbx
