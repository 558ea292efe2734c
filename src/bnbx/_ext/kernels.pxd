# The interface of kernels/include/bnbx/kernels.h.
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t
from libcpp cimport bool as cpp_bool
from libcpp.string cimport string
from libcpp.vector cimport vector


cdef extern from "common/optimizers.h" namespace "bnbx" nogil:
    cdef struct Hyperparameters:
        double lr
        double beta1
        double beta2
        double beta3
        double alpha
        double eps
        double weight_decay
        double gnorm_scale
        cpp_bool skip_zeros
        double max_unorm

    int64_t update_workspace(int64_t)
    const int kLiveNumbers


cdef extern from "common/codebooks.h" namespace "bnbx" nogil:
    cdef struct Codebook4:
        float values[16]
    cdef const Codebook4 kNF4
    cdef const Codebook4 kFP4


cdef extern from "bnbx/kernels.h" namespace "bnbx" nogil:
    ctypedef void* Stream

    cdef enum class DType(int):
        kFloat32
        kFloat16
        kBFloat16

    cdef enum class QuantType(int):
        kNF4
        kFP4

    cdef enum class OptimizerRule(int):
        kAdam
        kMomentum
        kNesterov
        kRMSprop
        kAdagrad
        kLion
        kAdEMAMix

    cdef struct BlockScales:
        const float* absmax
        int64_t blocksize
        const uint8_t* absmax_8bit
        const float* absmax_code
        const float* absmax_offset
        int64_t absmax_blocksize

    cdef struct Bias:
        const void* data
        DType dtype

    cdef struct ParameterUpdate:
        const void* g
        DType g_dtype
        void* p
        DType p_dtype
        void* state1
        void* state2
        float* absmax1
        float* absmax2
        float* unorm
        int64_t numel
        int64_t step
        void* compensation
        cpp_bool stochastic
        int64_t seed
        const double* live
        double* workspace

    void quantize_4bit(const void*, DType, int64_t, int64_t, QuantType, uint8_t*, float*,
                       Stream) except +
    void scale_search_4bit(const void*, DType, int64_t, const float*, int64_t, const float*,
                           int64_t, int64_t, int64_t, QuantType, float*, Stream) except +
    void encode_4bit(const void*, DType, int64_t, const float*, int64_t, QuantType, uint8_t*,
                     Stream) except +
    void dequantize_4bit(const uint8_t*, const float*, int64_t, int64_t, QuantType, void*, DType,
                         Stream) except +
    void gemm_4bit(const void*, DType, int64_t, int64_t, int64_t, const uint8_t*,
                   const BlockScales&, QuantType, const void*, void*, float*, Stream) except +
    int64_t gemm_4bit_workspace(DType, int64_t, int64_t, int64_t) except +
    void gemm_4bit_transposed(const void*, DType, int64_t, int64_t, int64_t, const uint8_t*,
                              const BlockScales&, QuantType, void*, float*, Stream) except +
    int64_t gemm_4bit_transposed_workspace(DType, int64_t, int64_t, int64_t) except +
    void gemm_4bit_grouped(const void*, DType, int64_t, const int64_t*, int64_t, int64_t, int64_t,
                           const uint8_t*, const BlockScales&, QuantType, const void*, void*,
                           Stream) except +
    void gemm_4bit_grouped_transposed(const void*, DType, int64_t, const int64_t*, int64_t,
                                      int64_t, int64_t, const uint8_t*, const BlockScales&,
                                      QuantType, void*, Stream) except +
    void quantize_blockwise(const void*, DType, int64_t, const float*, int64_t, uint8_t*, float*,
                            Stream) except +
    void dequantize_blockwise(const uint8_t*, const float*, int64_t, const float*, int64_t, void*,
                              DType, Stream) except +
    void int8_vectorwise_quant(const void*, DType, int64_t, int64_t, float, int8_t*, float*,
                               uint8_t*, Stream) except +
    void int8_vectorwise_dequant(const int8_t*, const float*, int64_t, int64_t, float*,
                                 Stream) except +
    void int8_double_quant(const void*, DType, int64_t, int64_t, float, int8_t*, int8_t*, float*,
                           float*, uint8_t*, Stream) except +
    void int8_linear_matmul(const int8_t*, const int8_t*, int64_t, int64_t, int64_t, int32_t*,
                            Stream) except +
    void int8_mm_dequant(const int32_t*, const float*, const float*, int64_t, int64_t, Bias, void*,
                         DType, Stream) except +
    void int8_scaled_mm(const int8_t*, const int8_t*, int64_t, int64_t, int64_t, const float*,
                        const float*, Bias, void*, DType, Stream) except +
    void int8_mixed_scaled_mm(const void*, DType, const int8_t*, const int8_t*, int64_t, int64_t,
                              int64_t, const float*, const float*, const int64_t*, int64_t, Bias,
                              void*, Stream) except +
    void int8_linear(const void*, DType, int64_t, int64_t, int64_t, const int8_t*, const float*,
                     float, Bias, int8_t*, float*, uint8_t*, void*, Stream) except +
    int64_t estimate_quantiles_workspace()
    void estimate_quantiles(const void*, DType, int64_t, double, int64_t, float*, int64_t*,
                            Stream) except +
    void optimizer_update_32bit(OptimizerRule, const ParameterUpdate*, int64_t,
                                const Hyperparameters&, Stream) except +
    void optimizer_update_blockwise(OptimizerRule, int, const ParameterUpdate*, int64_t,
                                    const float*, const float*, const Hyperparameters&,
                                    Stream) except +

    vector[string] operations() except +
    string isa() except +
    vector[string] available_isas() except +
    void select_isa(const string&) except +
