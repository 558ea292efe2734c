// AVX-512 with VBMI, VNNI and BF16: bf16 and int8 products of few rows have kernels of their own.
#include "avx/gemv_4bit_bf16.h"
#include "avx/avx512_table.h"
#include "avx/vec_avx512.h"

namespace bnbx {
namespace avx512bf16 {

struct Bf16;
using Vec = avx512::Vec<Bf16>;

static void gemm_4bit(const void* A, DType dtype, int64_t M, int64_t N, int64_t K, const uint8_t* B,
                      const BlockScales& scales, QuantType quant_type, const void* bias, void* out,
                      Stream stream) {
  const cpu::Product4 product{A, dtype, M, N, K, B, scales, quant_type, bias, out};
  if (cpu::gemv_4bit_bf16<Vec>(product)) return;
  cpu::gemm_4bit<Vec>(A, dtype, M, N, K, B, scales, quant_type, bias, out, stream);
}

static constexpr KernelTable make_table() {
  KernelTable table = cpu::avx512_table_of<Vec>();
  table.gemm_4bit = &gemm_4bit;
  return table;
}

extern const KernelTable kTable = make_table();

}  // namespace avx512bf16
}  // namespace bnbx
