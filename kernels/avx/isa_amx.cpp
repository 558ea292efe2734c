// AVX-512 with VNNI and BF16, and AMX tiles for products of more than a few rows.
#include "avx/avx512_table.h"
#include "avx/gemm_4bit_amx.h"
#include "avx/gemm_4bit_transposed_amx.h"
#include "avx/gemv_4bit_transposed.h"
#include "avx/int8_product_amx.h"
#include "avx/vec_avx512.h"

namespace bnbx {
namespace amx {

struct Amx;
using Vec = avx512::Vec<Amx>;

static constexpr int64_t kGemvMost = 4;  // rows of bf16; then tiles take over

static void gemm_4bit(const cpu::Product4& p) {
  const int64_t gemv_most = p.dtype == DType::kBFloat16 ? kGemvMost : cpu::kGemvMost;
  if (cpu::gemv_4bit_int16<Vec>(p, gemv_most) || cpu::gemm_4bit_amx<Vec>(p)) return;
  cpu::gemm_4bit<Vec>(p);
}

static void gemm_4bit_transposed(const cpu::Product4& p) {
  if (cpu::gemv_4bit_transposed<Vec>(p, kGemvMost) || cpu::gemm_4bit_transposed_amx<Vec>(p)) return;
  cpu::gemm_4bit_transposed<Vec>(p);
}

static constexpr KernelTable make_table() {
  KernelTable table = cpu::avx512_table_of<Vec>();
  table.gemm_4bit = &gemm_4bit;
  table.gemm_4bit_transposed = &gemm_4bit_transposed;
  table.int8_linear_matmul = &cpu::int8_linear_matmul<Vec, cpu::TileProduct<Vec>>;
  table.int8_scaled_mm = &cpu::int8_scaled_mm<Vec, cpu::TileProduct<Vec>>;
  table.int8_mixed_scaled_mm = &cpu::int8_mixed_scaled_mm<Vec, cpu::TileProduct<Vec>>;
  table.int8_linear = &cpu::int8_linear<Vec, cpu::TileProduct<Vec>>;
  return table;
}

extern const KernelTable kTable = make_table();

}  // namespace amx
}  // namespace bnbx
