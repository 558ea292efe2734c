# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
# cython: binding=False
"""Binding of one backend's kernel library: pointers as integers, sizes in elements.

Nothing is checked here: bnbx.ops checks every argument before bnbx.backends.native calls.
"""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uintptr_t
from libcpp.vector cimport vector

from bnbx._ext cimport kernels as k


def operations():
    """Return the names of the operations that this backend implements."""
    return [name.decode() for name in k.operations()]


def describe():
    """Return what the backend runs on: the instruction set chosen, and those available."""
    return {
        "isa": k.isa().decode(),
        "available_isas": [name.decode() for name in k.available_isas()],
    }


def select_isa(str name):
    """Use another instruction set from now on; ValueError if the machine lacks it."""
    k.select_isa(name.encode())


def codebook_4bit(int quant_type):
    """Return the kernels' table of a 4-bit type, to compare with the one in bnbx.codebooks."""
    book = k.kNF4 if quant_type == <int> k.QuantType.kNF4 else k.kFP4
    return [book.values[i] for i in range(16)]


def quantize_4bit(uintptr_t A, int dtype, int64_t n, int64_t blocksize, int quant_type,
                  uintptr_t out, uintptr_t absmax, uintptr_t stream):
    with nogil:
        k.quantize_4bit(<const void*> A, <k.DType> dtype, n, blocksize, <k.QuantType> quant_type,
                        <uint8_t*> out, <float*> absmax, <k.Stream> stream)


def dequantize_4bit(uintptr_t A, uintptr_t absmax, int64_t n, int64_t blocksize, int quant_type,
                    uintptr_t out, int dtype, uintptr_t stream):
    with nogil:
        k.dequantize_4bit(<const uint8_t*> A, <const float*> absmax, n, blocksize,
                          <k.QuantType> quant_type, <void*> out, <k.DType> dtype,
                          <k.Stream> stream)


cdef k.BlockScales make_scales(uintptr_t absmax, int64_t blocksize, uintptr_t absmax_8bit,
                               uintptr_t absmax_code, uintptr_t absmax_offset,
                               int64_t absmax_blocksize) noexcept:
    cdef k.BlockScales scales
    scales.absmax = <const float*> absmax
    scales.blocksize = blocksize
    scales.absmax_8bit = <const uint8_t*> absmax_8bit
    scales.absmax_code = <const float*> absmax_code
    scales.absmax_offset = <const float*> absmax_offset
    scales.absmax_blocksize = absmax_blocksize
    return scales


def gemm_4bit(uintptr_t A, int dtype, int64_t M, int64_t N, int64_t K, uintptr_t B,
              uintptr_t absmax, int64_t blocksize, int quant_type, uintptr_t bias,
              uintptr_t absmax_8bit, uintptr_t absmax_code, uintptr_t absmax_offset,
              int64_t absmax_blocksize, uintptr_t out, uintptr_t stream):
    cdef k.BlockScales scales = make_scales(absmax, blocksize, absmax_8bit, absmax_code,
                                            absmax_offset, absmax_blocksize)
    with nogil:
        k.gemm_4bit(<const void*> A, <k.DType> dtype, M, N, K, <const uint8_t*> B, scales,
                    <k.QuantType> quant_type, <const void*> bias, <void*> out, <k.Stream> stream)


def gemm_4bit_transposed(uintptr_t A, int dtype, int64_t M, int64_t N, int64_t K, uintptr_t B,
                         uintptr_t absmax, int64_t blocksize, int quant_type,
                         uintptr_t absmax_8bit, uintptr_t absmax_code, uintptr_t absmax_offset,
                         int64_t absmax_blocksize, uintptr_t out, uintptr_t stream):
    cdef k.BlockScales scales = make_scales(absmax, blocksize, absmax_8bit, absmax_code,
                                            absmax_offset, absmax_blocksize)
    with nogil:
        k.gemm_4bit_transposed(<const void*> A, <k.DType> dtype, M, N, K, <const uint8_t*> B,
                               scales, <k.QuantType> quant_type, <void*> out, <k.Stream> stream)


def quantize_blockwise(uintptr_t A, int dtype, int64_t n, uintptr_t code, int64_t blocksize,
                       uintptr_t out, uintptr_t absmax, uintptr_t stream):
    with nogil:
        k.quantize_blockwise(<const void*> A, <k.DType> dtype, n, <const float*> code, blocksize,
                             <uint8_t*> out, <float*> absmax, <k.Stream> stream)


def dequantize_blockwise(uintptr_t A, uintptr_t absmax, int64_t n, uintptr_t code,
                         int64_t blocksize, uintptr_t out, int dtype, uintptr_t stream):
    with nogil:
        k.dequantize_blockwise(<const uint8_t*> A, <const float*> absmax, n, <const float*> code,
                               blocksize, <void*> out, <k.DType> dtype, <k.Stream> stream)


def int8_vectorwise_quant(uintptr_t A, int dtype, int64_t rows, int64_t columns, float threshold,
                          uintptr_t out, uintptr_t stats, uintptr_t outliers, uintptr_t stream):
    with nogil:
        k.int8_vectorwise_quant(<const void*> A, <k.DType> dtype, rows, columns, threshold,
                                <int8_t*> out, <float*> stats, <uint8_t*> outliers,
                                <k.Stream> stream)


def int8_vectorwise_dequant(uintptr_t A, uintptr_t stats, int64_t rows, int64_t columns,
                            uintptr_t out, uintptr_t stream):
    with nogil:
        k.int8_vectorwise_dequant(<const int8_t*> A, <const float*> stats, rows, columns,
                                  <float*> out, <k.Stream> stream)


def int8_double_quant(uintptr_t A, int dtype, int64_t rows, int64_t columns, float threshold,
                      uintptr_t out_row, uintptr_t out_col, uintptr_t row_stats,
                      uintptr_t col_stats, uintptr_t outliers, uintptr_t stream):
    with nogil:
        k.int8_double_quant(<const void*> A, <k.DType> dtype, rows, columns, threshold,
                            <int8_t*> out_row, <int8_t*> out_col, <float*> row_stats,
                            <float*> col_stats, <uint8_t*> outliers, <k.Stream> stream)


def int8_linear_matmul(uintptr_t A, uintptr_t B, int64_t M, int64_t N, int64_t K, uintptr_t out,
                       uintptr_t stream):
    with nogil:
        k.int8_linear_matmul(<const int8_t*> A, <const int8_t*> B, M, N, K, <int32_t*> out,
                             <k.Stream> stream)


cdef k.Bias make_bias(uintptr_t data, int dtype) noexcept:
    cdef k.Bias bias
    bias.data = <const void*> data
    bias.dtype = <k.DType> dtype
    return bias


def int8_mm_dequant(uintptr_t A, uintptr_t row_stats, uintptr_t col_stats, int64_t M, int64_t N,
                    uintptr_t bias, int bias_dtype, uintptr_t out, int dtype, uintptr_t stream):
    cdef k.Bias b = make_bias(bias, bias_dtype)
    with nogil:
        k.int8_mm_dequant(<const int32_t*> A, <const float*> row_stats, <const float*> col_stats, M,
                          N, b, <void*> out, <k.DType> dtype, <k.Stream> stream)


def int8_scaled_mm(uintptr_t A, uintptr_t B, int64_t M, int64_t N, int64_t K, uintptr_t row_stats,
                   uintptr_t col_stats, uintptr_t bias, int bias_dtype, uintptr_t out, int dtype,
                   uintptr_t stream):
    cdef k.Bias b = make_bias(bias, bias_dtype)
    with nogil:
        k.int8_scaled_mm(<const int8_t*> A, <const int8_t*> B, M, N, K, <const float*> row_stats,
                         <const float*> col_stats, b, <void*> out, <k.DType> dtype,
                         <k.Stream> stream)


def int8_mixed_scaled_mm(uintptr_t A, int dtype, uintptr_t CA, uintptr_t CB, int64_t M, int64_t N,
                         int64_t K, uintptr_t SCA, uintptr_t SCB, uintptr_t outlier_cols,
                         int64_t outlier_count, uintptr_t bias, int bias_dtype, uintptr_t out,
                         uintptr_t stream):
    cdef k.Bias b = make_bias(bias, bias_dtype)
    with nogil:
        k.int8_mixed_scaled_mm(<const void*> A, <k.DType> dtype, <const int8_t*> CA,
                               <const int8_t*> CB, M, N, K, <const float*> SCA,
                               <const float*> SCB, <const int64_t*> outlier_cols, outlier_count, b,
                               <void*> out, <k.Stream> stream)


def int8_linear(uintptr_t A, int dtype, int64_t M, int64_t N, int64_t K, uintptr_t CB,
                uintptr_t SCB, float threshold, uintptr_t bias, int bias_dtype, uintptr_t codes,
                uintptr_t stats, uintptr_t outliers, uintptr_t out, uintptr_t stream):
    cdef k.Bias b = make_bias(bias, bias_dtype)
    with nogil:
        k.int8_linear(<const void*> A, <k.DType> dtype, M, N, K, <const int8_t*> CB,
                      <const float*> SCB, threshold, b, <int8_t*> codes, <float*> stats,
                      <uint8_t*> outliers, <void*> out, <k.Stream> stream)


def estimate_quantiles(uintptr_t A, int dtype, int64_t n, double offset, int64_t num_quantiles,
                       uintptr_t out, uintptr_t stream):
    with nogil:
        k.estimate_quantiles(<const void*> A, <k.DType> dtype, n, offset, num_quantiles,
                             <float*> out, <k.Stream> stream)


cdef k.Hyperparameters make_hyperparameters(tuple values) except *:
    # In the order of the schema: lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale,
    # skip_zeros, max_unorm.
    cdef k.Hyperparameters h
    (h.lr, h.beta1, h.beta2, h.beta3, h.alpha, h.eps, h.weight_decay, h.gnorm_scale,
     h.skip_zeros, h.max_unorm) = values
    return h


cdef void add_parameters(vector[k.ParameterUpdate]& updates, list g, list g_dtypes, list p,
                         list p_dtypes, list state1, list state2, list unorm, list numel,
                         list step, list compensation, list seed) except *:
    cdef k.ParameterUpdate u
    cdef Py_ssize_t i
    u.absmax1 = NULL
    u.absmax2 = NULL
    updates.reserve(len(p))
    for i in range(len(p)):
        u.g = <const void*> <uintptr_t> g[i]
        u.g_dtype = <k.DType> <int> g_dtypes[i]
        u.p = <void*> <uintptr_t> p[i]
        u.p_dtype = <k.DType> <int> p_dtypes[i]
        u.state1 = <void*> <uintptr_t> state1[i]
        u.state2 = <void*> <uintptr_t> state2[i] if state2 else NULL
        u.unorm = <float*> <uintptr_t> unorm[i] if unorm else NULL
        u.numel = numel[i]
        u.step = step[i]
        u.compensation = <void*> <uintptr_t> compensation[i] if compensation else NULL
        u.stochastic = len(seed) > 0
        u.seed = seed[i] if seed else 0
        updates.push_back(u)


def optimizer_update_32bit(int rule, list g, list g_dtypes, list p, list p_dtypes, list state1,
                           list state2, list unorm, list numel, list step, list compensation,
                           list seed, tuple hyperparameters, uintptr_t stream):
    cdef vector[k.ParameterUpdate] updates
    cdef k.Hyperparameters h = make_hyperparameters(hyperparameters)
    add_parameters(updates, g, g_dtypes, p, p_dtypes, state1, state2, unorm, numel, step,
                   compensation, seed)
    with nogil:
        k.optimizer_update_32bit(<k.OptimizerRule> rule, updates.data(), updates.size(), h,
                                 <k.Stream> stream)


cdef void add_scales(vector[k.ParameterUpdate]& updates, list absmax1, list absmax2) except *:
    cdef Py_ssize_t i
    for i in range(len(absmax1)):
        updates[i].absmax1 = <float*> <uintptr_t> absmax1[i]
        if absmax2:
            updates[i].absmax2 = <float*> <uintptr_t> absmax2[i]


def optimizer_update_blockwise(int rule, int bits, list g, list g_dtypes, list p, list p_dtypes,
                               list state1, list state2, list unorm, uintptr_t qmap1,
                               uintptr_t qmap2, list absmax1, list absmax2, list numel, list step,
                               list compensation, list seed, tuple hyperparameters,
                               uintptr_t stream):
    cdef vector[k.ParameterUpdate] updates
    cdef k.Hyperparameters h = make_hyperparameters(hyperparameters)
    add_parameters(updates, g, g_dtypes, p, p_dtypes, state1, state2, unorm, numel, step,
                   compensation, seed)
    add_scales(updates, absmax1, absmax2)
    with nogil:
        k.optimizer_update_blockwise(<k.OptimizerRule> rule, bits, updates.data(), updates.size(),
                                     <const float*> qmap1, <const float*> qmap2, h,
                                     <k.Stream> stream)
