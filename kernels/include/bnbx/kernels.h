// The interface that every backend implements: one function per operation.
//
// Pointers are to contiguous memory of the backend's device. Sizes are in elements. `stream` is the
// device's queue (cudaStream_t, hipStream_t, sycl::queue*), null on a CPU. The binding has checked
// every size before a pointer comes here; a kernel throws std::exception when it cannot run.
// What each operation computes stands in src/bnbx/backends/reference.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/optimizers.h"

namespace bnbx {

using Stream = void*;

enum class DType : int { kFloat32, kFloat16, kBFloat16 };
enum class QuantType : int { kNF4, kFP4 };
enum class OptimizerRule : int {
  kAdam,
  kMomentum,
  kNesterov,
  kRMSprop,
  kAdagrad,
  kLion,
  kAdEMAMix
};

// Scales of a 4-bit tensor, one per block of `blocksize` elements: absmax[i], or, if absmax_8bit is
// not null, absmax_code[absmax_8bit[i]] * absmax[i / absmax_blocksize] + *absmax_offset.
struct BlockScales {
  const float* absmax;
  int64_t blocksize;
  const uint8_t* absmax_8bit;
  const float* absmax_code;    // 256 entries
  const float* absmax_offset;  // 1 entry
  int64_t absmax_blocksize;
};

// A bias of N entries in its own dtype; absent if `data` is null.
struct Bias {
  const void* data;
  DType dtype;
};

// One parameter of an optimizer step. The states are float for 32-bit updates, uint8_t codes with
// their absmax for 8-bit updates (one per 256 elements) and 4-bit updates (one per 128 elements,
// the codes packed as below). state2 and absmax2 are null where a rule keeps one state; AdEMAMix
// has its slow average in the second half of state1 and absmax1. unorm is null unless max_unorm is
// above 0; it gets the norm of the update. With `compensation` or `stochastic`, p is bfloat16.
struct ParameterUpdate {
  const void* g;
  DType g_dtype;
  void* p;
  DType p_dtype;
  void* state1;
  void* state2;
  float* absmax1;
  float* absmax2;
  float* unorm;
  int64_t numel;
  int64_t step;  // counted from 1
  // bfloat16: what rounding has left over, so that the parameter is p + compensation. Or null.
  void* compensation = nullptr;
  // Round p up or down at random, as `seed`, the step and the element's number have it.
  bool stochastic = false;
  int64_t seed = 0;
  // Or null: kLiveNumbers numbers in the backend's memory, that go before `step` and the fields of
  // the hyperparameters with these names: step, lr, beta3, alpha, gnorm_scale. They are read when
  // the update runs, so that the host need not know them and a captured graph goes on with what
  // stands there then.
  const double* live = nullptr;
  // Where unorm or live is not null: update_workspace(numel) numbers, which need not be set.
  double* workspace = nullptr;
};

// 4-bit: codes are packed two to a byte, the first in the high nibble.
void quantize_4bit(const void* A, DType dtype, int64_t n, int64_t blocksize, QuantType quant_type,
                   uint8_t* out, float* absmax, Stream stream);
// The scale of each block, of either sign, with the smallest squared error: `trials` factors of the
// largest magnitude are tried, the best is refined. `importance` (`columns`, or null) weights the
// errors; element i belongs to column i % columns.
void scale_search_4bit(const void* A, DType dtype, int64_t n, const float* importance,
                       int64_t columns, const float* factors, int64_t trials, int64_t refinements,
                       int64_t blocksize, QuantType quant_type, float* absmax, Stream stream);
// The nearest codes at the scales given, one per block; NaN for a block that is not finite.
void encode_4bit(const void* A, DType dtype, int64_t n, const float* absmax, int64_t blocksize,
                 QuantType quant_type, uint8_t* out, Stream stream);
void dequantize_4bit(const uint8_t* A, const float* absmax, int64_t n, int64_t blocksize,
                     QuantType quant_type, void* out, DType dtype, Stream stream);
// out (M, N) = A (M, K) times the transpose of B (N, K), plus bias (N, in A's dtype, or null). The
// workspace has as many floats as the function below says, which need not be set. If it is null,
// the product does without, more slowly.
void gemm_4bit(const void* A, DType dtype, int64_t M, int64_t N, int64_t K, const uint8_t* B,
               const BlockScales& scales, QuantType quant_type, const void* bias, void* out,
               float* workspace, Stream stream);
int64_t gemm_4bit_workspace(DType dtype, int64_t M, int64_t N, int64_t K);

// out (M, K) = A (M, N) times B (N, K): the gradient of gemm_4bit with respect to its A.
void gemm_4bit_transposed(const void* A, DType dtype, int64_t M, int64_t N, int64_t K,
                          const uint8_t* B, const BlockScales& scales, QuantType quant_type,
                          void* out, float* workspace, Stream stream);
int64_t gemm_4bit_transposed_workspace(DType dtype, int64_t M, int64_t N, int64_t K);

// The same for E weights in one, B (E, N, K): expert e has the rows of A (M rows in all), and of
// out, from ends[e - 1] (0 for the first) to before ends[e]. Rows behind the last expert's become
// zeros. `bias` is (E, N) or null. A GPU cannot refuse what it finds in `ends` without making the
// host wait: it takes each for a number from the one before to M.
void gemm_4bit_grouped(const void* A, DType dtype, int64_t M, const int64_t* ends, int64_t E,
                       int64_t N, int64_t K, const uint8_t* B, const BlockScales& scales,
                       QuantType quant_type, const void* bias, void* out, Stream stream);
void gemm_4bit_grouped_transposed(const void* A, DType dtype, int64_t M, const int64_t* ends,
                                  int64_t E, int64_t N, int64_t K, const uint8_t* B,
                                  const BlockScales& scales, QuantType quant_type, void* out,
                                  Stream stream);

// Blockwise 8-bit: `code` is a codebook of 256 ascending entries.
void quantize_blockwise(const void* A, DType dtype, int64_t n, const float* code, int64_t blocksize,
                        uint8_t* out, float* absmax, Stream stream);
void dequantize_blockwise(const uint8_t* A, const float* absmax, int64_t n, const float* code,
                          int64_t blocksize, void* out, DType dtype, Stream stream);

// LLM.int8(): `outliers` has one byte per column, set to 1 where a column holds an outlier and 0
// elsewhere; it is null when threshold is 0.
void int8_vectorwise_quant(const void* A, DType dtype, int64_t rows, int64_t columns,
                           float threshold, int8_t* out, float* stats, uint8_t* outliers,
                           Stream stream);
void int8_vectorwise_dequant(const int8_t* A, const float* stats, int64_t rows, int64_t columns,
                             float* out, Stream stream);
void int8_double_quant(const void* A, DType dtype, int64_t rows, int64_t columns, float threshold,
                       int8_t* out_row, int8_t* out_col, float* row_stats, float* col_stats,
                       uint8_t* outliers, Stream stream);
// out (M, N) = A (M, K) times the transpose of B (N, K).
void int8_linear_matmul(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                        int32_t* out, Stream stream);
void int8_mm_dequant(const int32_t* A, const float* row_stats, const float* col_stats, int64_t M,
                     int64_t N, Bias bias, void* out, DType dtype, Stream stream);
void int8_scaled_mm(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                    const float* row_stats, const float* col_stats, Bias bias, void* out,
                    DType dtype, Stream stream);
// Adds the product of A's columns `outlier_cols` (indices below K) with B's, dequantized.
void int8_mixed_scaled_mm(const void* A, DType dtype, const int8_t* CA, const int8_t* CB, int64_t M,
                          int64_t N, int64_t K, const float* SCA, const float* SCB,
                          const int64_t* outlier_cols, int64_t outlier_count, Bias bias, void* out,
                          Stream stream);
// The three steps in one. Workspace: codes (M, K), stats (M), outliers (K).
void int8_linear(const void* A, DType dtype, int64_t M, int64_t N, int64_t K, const int8_t* CB,
                 const float* SCB, float threshold, Bias bias, int8_t* codes, float* stats,
                 uint8_t* outliers, void* out, Stream stream);

// Values at num_quantiles shares of the n > 0 values of A, evenly from `offset` to 1 - offset.
// Workspace: as many numbers as the backend says, which need not be set.
int64_t estimate_quantiles_workspace();
void estimate_quantiles(const void* A, DType dtype, int64_t n, double offset, int64_t num_quantiles,
                        float* out, int64_t* workspace, Stream stream);

// Optimizers: one call updates all parameters that share their hyperparameters. qmap2 is null where
// a rule keeps one state.
void optimizer_update_32bit(OptimizerRule rule, const ParameterUpdate* parameters, int64_t count,
                            const Hyperparameters& hyperparameters, Stream stream);
// States of 8 or 4 bits; the maps have 2^bits ascending entries.
void optimizer_update_blockwise(OptimizerRule rule, int bits, const ParameterUpdate* parameters,
                                int64_t count, const float* qmap1, const float* qmap2,
                                const Hyperparameters& hyperparameters, Stream stream);

// The operations that this backend implements, by their names above; ".out" overloads included.
std::vector<std::string> operations();

// What the backend is: the instruction set (or toolkit) in use and those that could be.
std::string isa();
std::vector<std::string> available_isas();
// Uses another instruction set from now on; throws std::invalid_argument if the machine lacks it.
void select_isa(const std::string& name);

}  // namespace bnbx
