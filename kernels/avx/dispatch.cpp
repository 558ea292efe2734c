// The CPU backend: each operation goes to the kernels of the best instruction set that the machine
// has, chosen when the library is loaded, or to the one that BNBX_FORCE_ISA names.
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "avx/cpu_features.h"
#include "avx/gemm_4bit_grouped.h"
#include "avx/kernel_table.h"
#include "common/operations.h"

namespace bnbx {
namespace {

struct Implementation {
  const char* name;
  bool (*supported)();
  const KernelTable* table;
};

// In order of preference.
const Implementation kImplementations[] = {
#ifdef BNBX_X86_VNNI
    {"amx", &cpu_has_amx, &amx::kTable},
    {"avx512vnni", &cpu_has_avx512vnni, &avx512vnni::kTable},
#endif
#ifdef BNBX_X86
    {"avx512", &cpu_has_avx512, &avx512::kTable},
    {"avx2", &cpu_has_avx2, &avx2::kTable},
#endif
#ifdef BNBX_NEON
    {"neon_mmla", &cpu_has_neon_mmla, &neon_mmla::kTable},
    {"neon_dotprod", &cpu_has_neon_dotprod, &neon_dotprod::kTable},
    {"neon", [] { return true; }, &neon::kTable},
#endif
    {"scalar", [] { return true; }, &scalar::kTable},
};

// What this machine has of them, asked once: a virtual machine answers slowly.
const std::vector<const Implementation*>& available() {
  static const std::vector<const Implementation*> found = [] {
    std::vector<const Implementation*> list;
    for (const Implementation& implementation : kImplementations) {
      if (implementation.supported()) list.push_back(&implementation);
    }
    return list;
  }();
  return found;
}

const Implementation& find(const std::string& name) {
  std::string names;
  for (const Implementation* implementation : available()) {
    if (name == implementation->name) return *implementation;
    names += (names.empty() ? "" : ", ") + std::string(implementation->name);
  }
  throw std::invalid_argument("isa: expected one of " + names + " (what this machine has), got '" +
                              name + "'");
}

const Implementation& best() { return *available().front(); }  // scalar is always there

// Chosen once, at the first use, so that a bad BNBX_FORCE_ISA becomes an exception of the import.
std::atomic<const Implementation*>& active() {
  static std::atomic<const Implementation*> chosen([] {
    const char* forced = std::getenv("BNBX_FORCE_ISA");
    return forced != nullptr && *forced != '\0' ? &find(forced) : &best();
  }());
  return chosen;
}

// Encoding bisects the codebook.
void check_ascending(const char* argument, const float* code, int entries = 256) {
  for (int i = 0; i + 1 < entries; ++i) {
    if (code[i] <= code[i + 1]) continue;
    throw std::invalid_argument(std::string(argument) + ": expected " + std::to_string(entries) +
                                " ascending entries, got entry " + std::to_string(i) +
                                " above the next; sort the codebook");
  }
}

const KernelTable& kernels() { return *active().load(std::memory_order_relaxed)->table; }

}  // namespace

std::string isa() { return active().load()->name; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Implementation* implementation : available()) names.emplace_back(implementation->name);
  return names;
}

void select_isa(const std::string& name) { active().store(&find(name)); }

std::vector<std::string> operations() { return every_operation(); }

void quantize_4bit(const void* A, DType dtype, int64_t n, int64_t blocksize, QuantType quant_type,
                   uint8_t* out, float* absmax, Stream stream) {
  kernels().quantize_4bit(A, dtype, n, blocksize, quant_type, out, absmax, stream);
}

void scale_search_4bit(const void* A, DType dtype, int64_t n, const float* importance,
                       int64_t columns, const float* factors, int64_t trials, int64_t refinements,
                       int64_t blocksize, QuantType quant_type, float* absmax, Stream stream) {
  kernels().scale_search_4bit(A, dtype, n, importance, columns, factors, trials, refinements,
                              blocksize, quant_type, absmax, stream);
}

void encode_4bit(const void* A, DType dtype, int64_t n, const float* absmax, int64_t blocksize,
                 QuantType quant_type, uint8_t* out, Stream stream) {
  kernels().encode_4bit(A, dtype, n, absmax, blocksize, quant_type, out, stream);
}

void dequantize_4bit(const uint8_t* A, const float* absmax, int64_t n, int64_t blocksize,
                     QuantType quant_type, void* out, DType dtype, Stream stream) {
  kernels().dequantize_4bit(A, absmax, n, blocksize, quant_type, out, dtype, stream);
}

void gemm_4bit(const void* A, DType dtype, int64_t M, int64_t N, int64_t K, const uint8_t* B,
               const BlockScales& scales, QuantType quant_type, const void* bias, void* out, float*,
               Stream) {
  kernels().gemm_4bit({A, dtype, M, N, K, B, scales, quant_type, bias, out, 0, 0, N});
}

int64_t gemm_4bit_workspace(DType, int64_t, int64_t, int64_t) { return 0; }

void gemm_4bit_transposed(const void* A, DType dtype, int64_t M, int64_t N, int64_t K,
                          const uint8_t* B, const BlockScales& scales, QuantType quant_type,
                          void* out, float*, Stream) {
  kernels().gemm_4bit_transposed({A, dtype, M, N, K, B, scales, quant_type, nullptr, out, 0, 0, K});
}

int64_t gemm_4bit_transposed_workspace(DType, int64_t, int64_t, int64_t) { return 0; }

void gemm_4bit_grouped(const void* A, DType dtype, int64_t M, const int64_t* ends, int64_t E,
                       int64_t N, int64_t K, const uint8_t* B, const BlockScales& scales,
                       QuantType quant_type, const void* bias, void* out, Stream) {
  const cpu::Product4 stack{A, dtype, M, N, K, B, scales, quant_type, bias, out, 0, 0, N};
  cpu::multiply_grouped(stack, ends, E, false, kernels().gemm_4bit);
}

void gemm_4bit_grouped_transposed(const void* A, DType dtype, int64_t M, const int64_t* ends,
                                  int64_t E, int64_t N, int64_t K, const uint8_t* B,
                                  const BlockScales& scales, QuantType quant_type, void* out,
                                  Stream) {
  const cpu::Product4 stack{A, dtype, M, N, K, B, scales, quant_type, nullptr, out, 0, 0, K};
  cpu::multiply_grouped(stack, ends, E, true, kernels().gemm_4bit_transposed);
}

void quantize_blockwise(const void* A, DType dtype, int64_t n, const float* code, int64_t blocksize,
                        uint8_t* out, float* absmax, Stream stream) {
  check_ascending("code", code);
  kernels().quantize_blockwise(A, dtype, n, code, blocksize, out, absmax, stream);
}

void dequantize_blockwise(const uint8_t* A, const float* absmax, int64_t n, const float* code,
                          int64_t blocksize, void* out, DType dtype, Stream stream) {
  kernels().dequantize_blockwise(A, absmax, n, code, blocksize, out, dtype, stream);
}

void int8_vectorwise_quant(const void* A, DType dtype, int64_t rows, int64_t columns,
                           float threshold, int8_t* out, float* stats, uint8_t* outliers,
                           Stream stream) {
  kernels().int8_vectorwise_quant(A, dtype, rows, columns, threshold, out, stats, outliers, stream);
}

void int8_vectorwise_dequant(const int8_t* A, const float* stats, int64_t rows, int64_t columns,
                             float* out, Stream stream) {
  kernels().int8_vectorwise_dequant(A, stats, rows, columns, out, stream);
}

void int8_double_quant(const void* A, DType dtype, int64_t rows, int64_t columns, float threshold,
                       int8_t* out_row, int8_t* out_col, float* row_stats, float* col_stats,
                       uint8_t* outliers, Stream stream) {
  kernels().int8_double_quant(A, dtype, rows, columns, threshold, out_row, out_col, row_stats,
                              col_stats, outliers, stream);
}

void int8_linear_matmul(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                        int32_t* out, Stream stream) {
  kernels().int8_linear_matmul(A, B, M, N, K, out, stream);
}

void int8_mm_dequant(const int32_t* A, const float* row_stats, const float* col_stats, int64_t M,
                     int64_t N, Bias bias, void* out, DType dtype, Stream stream) {
  kernels().int8_mm_dequant(A, row_stats, col_stats, M, N, bias, out, dtype, stream);
}

void int8_scaled_mm(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                    const float* row_stats, const float* col_stats, Bias bias, void* out,
                    DType dtype, Stream stream) {
  kernels().int8_scaled_mm(A, B, M, N, K, row_stats, col_stats, bias, out, dtype, stream);
}

void int8_mixed_scaled_mm(const void* A, DType dtype, const int8_t* CA, const int8_t* CB, int64_t M,
                          int64_t N, int64_t K, const float* SCA, const float* SCB,
                          const int64_t* outlier_cols, int64_t outlier_count, Bias bias, void* out,
                          Stream stream) {
  kernels().int8_mixed_scaled_mm(A, dtype, CA, CB, M, N, K, SCA, SCB, outlier_cols, outlier_count,
                                 bias, out, stream);
}

void int8_linear(const void* A, DType dtype, int64_t M, int64_t N, int64_t K, const int8_t* CB,
                 const float* SCB, float threshold, Bias bias, int8_t* codes, float* stats,
                 uint8_t* outliers, void* out, Stream stream) {
  kernels().int8_linear(A, dtype, M, N, K, CB, SCB, threshold, bias, codes, stats, outliers, out,
                        stream);
}

int64_t estimate_quantiles_workspace() { return 0; }

void estimate_quantiles(const void* A, DType dtype, int64_t n, double offset, int64_t num_quantiles,
                        float* out, int64_t* workspace, Stream stream) {
  kernels().estimate_quantiles(A, dtype, n, offset, num_quantiles, out, workspace, stream);
}

void optimizer_update_32bit(OptimizerRule rule, const ParameterUpdate* parameters, int64_t count,
                            const Hyperparameters& hyperparameters, Stream stream) {
  kernels().optimizer_update_32bit(rule, parameters, count, hyperparameters, stream);
}

void optimizer_update_blockwise(OptimizerRule rule, int bits, const ParameterUpdate* parameters,
                                int64_t count, const float* qmap1, const float* qmap2,
                                const Hyperparameters& hyperparameters, Stream stream) {
  check_ascending("qmap1", qmap1, 1 << bits);
  if (qmap2 != nullptr) check_ascending("qmap2", qmap2, 1 << bits);
  const KernelTable& table = kernels();
  const BlockwiseUpdate update =
      bits == 4 ? table.optimizer_update_4bit_blockwise : table.optimizer_update_8bit_blockwise;
  update(rule, parameters, count, qmap1, qmap2, hyperparameters, stream);
}

}  // namespace bnbx
