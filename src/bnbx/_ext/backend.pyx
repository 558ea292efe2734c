# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
# cython: binding=False
"""Binding of one backend's kernel library: pointers as integers, sizes in elements.

Nothing is checked here but the tensors of an optimizer step, hundreds of which come in one call:
bnbx.ops checks every other argument before bnbx.backends.native calls.
"""

from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uintptr_t
from libcpp.vector cimport vector

from bnbx._ext cimport dlpack
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


def scale_search_4bit(uintptr_t A, int dtype, int64_t n, uintptr_t importance, int64_t columns,
                      list factors, int64_t refinements, int64_t blocksize, int quant_type,
                      uintptr_t absmax, uintptr_t stream):
    cdef vector[float] trials = factors
    with nogil:
        k.scale_search_4bit(<const void*> A, <k.DType> dtype, n, <const float*> importance,
                            columns, trials.data(), trials.size(), refinements, blocksize,
                            <k.QuantType> quant_type, <float*> absmax, <k.Stream> stream)


def encode_4bit(uintptr_t A, int dtype, int64_t n, uintptr_t absmax, int64_t blocksize,
                int quant_type, uintptr_t out, uintptr_t stream):
    with nogil:
        k.encode_4bit(<const void*> A, <k.DType> dtype, n, <const float*> absmax, blocksize,
                      <k.QuantType> quant_type, <uint8_t*> out, <k.Stream> stream)


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


def gemm_4bit(uintptr_t A, int dtype, int64_t M, int64_t N, int64_t K, uintptr_t workspace,
              uintptr_t B, uintptr_t absmax, int64_t blocksize, int quant_type, uintptr_t bias,
              uintptr_t absmax_8bit, uintptr_t absmax_code, uintptr_t absmax_offset,
              int64_t absmax_blocksize, uintptr_t out, uintptr_t stream):
    cdef k.BlockScales scales = make_scales(absmax, blocksize, absmax_8bit, absmax_code,
                                            absmax_offset, absmax_blocksize)
    with nogil:
        k.gemm_4bit(<const void*> A, <k.DType> dtype, M, N, K, <const uint8_t*> B, scales,
                    <k.QuantType> quant_type, <const void*> bias, <void*> out,
                    <float*> workspace, <k.Stream> stream)


def gemm_4bit_workspace(int dtype, int64_t M, int64_t N, int64_t K):
    """Return how many float32 of workspace gemm_4bit needs."""
    return k.gemm_4bit_workspace(<k.DType> dtype, M, N, K)


def gemm_4bit_transposed_workspace(int dtype, int64_t M, int64_t N, int64_t K):
    """Return how many float32 of workspace gemm_4bit_transposed needs."""
    return k.gemm_4bit_transposed_workspace(<k.DType> dtype, M, N, K)


def gemm_4bit_transposed(uintptr_t A, int dtype, int64_t M, int64_t N, int64_t K,
                         uintptr_t workspace, uintptr_t B, uintptr_t absmax, int64_t blocksize,
                         int quant_type, uintptr_t absmax_8bit, uintptr_t absmax_code,
                         uintptr_t absmax_offset, int64_t absmax_blocksize, uintptr_t out,
                         uintptr_t stream):
    cdef k.BlockScales scales = make_scales(absmax, blocksize, absmax_8bit, absmax_code,
                                            absmax_offset, absmax_blocksize)
    with nogil:
        k.gemm_4bit_transposed(<const void*> A, <k.DType> dtype, M, N, K, <const uint8_t*> B,
                               scales, <k.QuantType> quant_type, <void*> out, <float*> workspace,
                               <k.Stream> stream)


def gemm_4bit_grouped(uintptr_t A, int dtype, int64_t M, uintptr_t ends, int64_t E, int64_t N,
                      int64_t K, uintptr_t B, uintptr_t absmax, int64_t blocksize, int quant_type,
                      uintptr_t bias, uintptr_t absmax_8bit, uintptr_t absmax_code,
                      uintptr_t absmax_offset, int64_t absmax_blocksize, uintptr_t out,
                      uintptr_t stream):
    cdef k.BlockScales scales = make_scales(absmax, blocksize, absmax_8bit, absmax_code,
                                            absmax_offset, absmax_blocksize)
    with nogil:
        k.gemm_4bit_grouped(<const void*> A, <k.DType> dtype, M, <const int64_t*> ends, E, N, K,
                            <const uint8_t*> B, scales, <k.QuantType> quant_type,
                            <const void*> bias, <void*> out, <k.Stream> stream)


def gemm_4bit_grouped_transposed(uintptr_t A, int dtype, int64_t M, uintptr_t ends, int64_t E,
                                 int64_t N, int64_t K, uintptr_t B, uintptr_t absmax,
                                 int64_t blocksize, int quant_type, uintptr_t absmax_8bit,
                                 uintptr_t absmax_code, uintptr_t absmax_offset,
                                 int64_t absmax_blocksize, uintptr_t out, uintptr_t stream):
    cdef k.BlockScales scales = make_scales(absmax, blocksize, absmax_8bit, absmax_code,
                                            absmax_offset, absmax_blocksize)
    with nogil:
        k.gemm_4bit_grouped_transposed(<const void*> A, <k.DType> dtype, M, <const int64_t*> ends,
                                       E, N, K, <const uint8_t*> B, scales,
                                       <k.QuantType> quant_type, <void*> out, <k.Stream> stream)


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


def estimate_quantiles_workspace():
    """Return how many int64 of workspace ``estimate_quantiles`` needs."""
    return k.estimate_quantiles_workspace()


def estimate_quantiles(uintptr_t A, int dtype, int64_t n, double offset, int64_t num_quantiles,
                       uintptr_t out, uintptr_t workspace, uintptr_t stream):
    with nogil:
        k.estimate_quantiles(<const void*> A, <k.DType> dtype, n, offset, num_quantiles,
                             <float*> out, <int64_t*> workspace, <k.Stream> stream)


cdef k.Hyperparameters make_hyperparameters(tuple values) except *:
    # In the order of the schema: lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale,
    # skip_zeros, max_unorm.
    cdef k.Hyperparameters h
    (h.lr, h.beta1, h.beta2, h.beta3, h.alpha, h.eps, h.weight_decay, h.gnorm_scale,
     h.skip_zeros, h.max_unorm) = values
    return h


cdef dlpack.Exchange* exchange = NULL
cdef int32_t device_type = 0


def read_tensors_by(capsule, int32_t device):
    """Read tensors of one type of device by their type's ``__dlpack_c_exchange_api__``.

    All that a kernel has to know of a tensor is then found in one call, without torch's headers.
    ImportError if the table is too new.
    """
    global exchange, device_type
    cdef dlpack.ExchangeHeader* header = <dlpack.ExchangeHeader*> PyCapsule_GetPointer(
        capsule, "dlpack_exchange_api")
    while header != NULL and header.version.major != dlpack.MAJOR_VERSION:
        header = header.older
    cdef dlpack.Exchange* found = <dlpack.Exchange*> header
    if found == NULL or found.dltensor_from_py_object_no_sync == NULL:
        raise ImportError("expected tensors of DLPack 1, got others from this version of torch")
    exchange, device_type = found, device


cdef bint read(object tensor, dlpack.Tensor* out) noexcept:
    # What DLPack does not know, such as a tensor on meta, is wrong; bnbx.ops says why. So is one
    # in memory that the kernels do not reach.
    if exchange.dltensor_from_py_object_no_sync(<void*> tensor, out) == 0:
        return out.device.device_type == device_type
    PyErr_Clear()
    return False


cdef void* memory_of(const dlpack.Tensor& t) noexcept:
    return <char*> t.data + t.byte_offset


cdef bint is_of(const dlpack.Tensor& t, uint8_t kind, uint8_t bits) noexcept:
    return t.dtype.code == kind and t.dtype.bits == bits and t.dtype.lanes == 1


cdef int dtype_of(const dlpack.Tensor& t) noexcept:
    if is_of(t, dlpack.FLOAT, 32):
        return <int> k.DType.kFloat32
    if is_of(t, dlpack.FLOAT, 16):
        return <int> k.DType.kFloat16
    return <int> k.DType.kBFloat16 if is_of(t, dlpack.BFLOAT, 16) else -1


cdef int64_t numel_of(const dlpack.Tensor& t) noexcept:
    cdef int64_t numel = 1
    cdef int32_t i
    for i in range(t.ndim):
        numel *= t.shape[i]
    return numel


cdef bint is_contiguous(const dlpack.Tensor& t) noexcept:
    cdef int64_t stride = 1
    cdef int32_t i
    if t.strides == NULL or numel_of(t) == 0:
        return True
    for i in range(t.ndim - 1, -1, -1):
        if t.shape[i] != 1 and t.strides[i] != stride:
            return False
        stride *= t.shape[i]
    return True


cdef bint has_shape(const dlpack.Tensor& t, int64_t stacked, const int64_t* shape,
                    int32_t ndim) noexcept:
    # With more than one value stacked, their number stands in front of the shape.
    cdef int32_t front = 1 if stacked > 1 else 0
    cdef int32_t i
    if t.ndim != front + ndim or (front and t.shape[0] != stacked):
        return False
    for i in range(ndim):
        if t.shape[front + i] != shape[i]:
            return False
    return True


cdef bint lies_beside(const dlpack.Tensor& t, const dlpack.Tensor& p) noexcept:
    # A storage that was freed, as FSDP does, leaves tensors without memory.
    return (t.device.device_type == p.device.device_type
            and t.device.device_id == p.device.device_id
            and (memory_of(t) != NULL or numel_of(t) == 0))


cdef bint lies_in_storage(object tensor, const dlpack.Tensor& t) except -1:
    # Those who free or shrink the storage of a parameter to save memory leave its shape as it is.
    storage = tensor.untyped_storage()
    cdef uintptr_t end = <uintptr_t> memory_of(t) + numel_of(t) * t.dtype.bits // 8
    return end <= <uintptr_t> storage.data_ptr() + <uintptr_t> len(storage)


cdef bint read_beside(object tensor, const dlpack.Tensor& p, uint8_t kind, uint8_t bits,
                      dlpack.Tensor* out) noexcept:
    """Read a tensor and return whether it has that dtype and no gaps, and lies beside ``p``."""
    return (read(tensor, out) and is_of(out[0], kind, bits) and is_contiguous(out[0])
            and lies_beside(out[0], p))


cdef class Lists:
    """The lists of a bnbx.ops.optimizers.OptimizerUpdate, checked as they are read."""

    cdef list g, p, states, scales, stacked, unorm, step, compensation, seed
    cdef list copies  # of gradients with gaps, which live as long as this
    cdef int bits
    cdef int64_t blocksize
    cdef const double* live
    cdef double* workspace

    def __cinit__(self, update, uintptr_t live, uintptr_t workspace):
        self.g, self.p, self.step = update.g, update.p, update.step
        self.states, self.scales, self.stacked = update.states, update.scales, update.stacked
        self.unorm, self.seed = update.unorm_vec, update.seed
        self.compensation = update.compensation
        self.bits, self.blocksize = update.bits, update.blocksize
        self.live, self.workspace = <const double*> live, <double*> workspace
        self.copies = []

    cdef Py_ssize_t read_all(self, vector[k.ParameterUpdate]& updates) except -2:
        """Return which parameter is the first that something is wrong with, or -1."""
        cdef k.ParameterUpdate u
        cdef dlpack.Tensor p
        cdef int32_t device_id = 0
        cdef Py_ssize_t i
        updates.reserve(len(self.p))
        for i in range(len(self.p)):
            if not (self.read_parameter(i, &p, &u) and self.read_states(i, p, &u)
                    and self.read_extras(i, p, &u)):
                return i
            if i == 0:
                device_id = p.device.device_id
            if p.device.device_id != device_id:
                return i
            updates.push_back(u)
        return -1

    cdef bint read_parameter(self, Py_ssize_t i, dlpack.Tensor* p,
                             k.ParameterUpdate* u) except -1:
        cdef dlpack.Tensor g
        if not read(self.p[i], p) or not read(self.g[i], &g):
            return False
        cdef int p_dtype = dtype_of(p[0]), g_dtype = dtype_of(g)
        if (p_dtype < 0 or not is_contiguous(p[0]) or not lies_in_storage(self.p[i], p[0])
                or g_dtype < 0 or not has_shape(g, 1, p.shape, p.ndim) or not lies_beside(g, p[0])):
            return False
        if not is_contiguous(g):
            copy = self.g[i].contiguous()
            self.copies.append(copy)
            if not read(copy, &g):
                return False
        u.g, u.g_dtype = memory_of(g), <k.DType> g_dtype
        u.p, u.p_dtype = memory_of(p[0]), <k.DType> p_dtype
        u.numel = numel_of(p[0])
        u.step = self.step[i] if self.live == NULL else 1
        return u.step >= 1

    cdef bint read_states(self, Py_ssize_t i, const dlpack.Tensor& p,
                          k.ParameterUpdate* u) except -1:
        cdef dlpack.Tensor t
        cdef void* states[2]
        cdef void* scales[2]
        cdef int64_t stacked, packed = (u.numel + 1) // 2
        cdef int64_t blocks = (u.numel + self.blocksize - 1) // self.blocksize
        cdef Py_ssize_t j
        cdef bint wide = self.bits == 32
        states[1] = scales[0] = scales[1] = NULL
        for j in range(len(self.states)):
            stacked = self.stacked[j]
            if not read_beside(self.states[j][i], p, dlpack.FLOAT if wide else dlpack.UINT,
                               32 if wide else 8, &t):
                return False
            if not (has_shape(t, stacked, &packed, 1) if self.bits == 4
                    else has_shape(t, stacked, p.shape, p.ndim)):
                return False
            states[j] = memory_of(t)
            if not wide:
                if (not read_beside(self.scales[j][i], p, dlpack.FLOAT, 32, &t)
                        or numel_of(t) != stacked * blocks):
                    return False
                scales[j] = memory_of(t)
        u.state1, u.state2 = states[0], states[1]
        u.absmax1, u.absmax2 = <float*> scales[0], <float*> scales[1]
        return True

    cdef bint read_extras(self, Py_ssize_t i, const dlpack.Tensor& p,
                          k.ParameterUpdate* u) except -1:
        cdef dlpack.Tensor t
        u.unorm = NULL
        u.compensation = NULL
        u.stochastic, u.seed = self.seed is not None, 0
        u.live, u.workspace = self.live, self.workspace
        if self.live != NULL:
            u.live += i * k.kLiveNumbers
        if self.workspace != NULL:
            self.workspace += k.update_workspace(u.numel)
        if self.unorm:
            if not read_beside(self.unorm[i], p, dlpack.FLOAT, 32, &t) or numel_of(t) != 1:
                return False
            u.unorm = <float*> memory_of(t)
        if self.compensation is not None:
            if (not read_beside(self.compensation[i], p, dlpack.BFLOAT, 16, &t)
                    or not has_shape(t, 1, p.shape, p.ndim)):
                return False
            u.compensation = memory_of(t)
        if self.seed is not None:
            u.seed = self.seed[i]
        return (u.p_dtype == k.DType.kBFloat16
                or (self.compensation is None and self.seed is None))


def update_workspace(int64_t numel):
    """Return how many float64 of workspace the update of a parameter needs."""
    return k.update_workspace(numel)


def optimizer_update_32bit(int rule, update, uintptr_t live, uintptr_t workspace,
                           uintptr_t stream):
    """Return -1, or which parameter is wrong; nothing is updated then."""
    cdef vector[k.ParameterUpdate] updates
    cdef k.Hyperparameters h = make_hyperparameters(update.hyperparameters)
    cdef Lists lists = Lists(update, live, workspace)
    cdef Py_ssize_t wrong = lists.read_all(updates)
    if wrong < 0:
        with nogil:
            k.optimizer_update_32bit(<k.OptimizerRule> rule, updates.data(), updates.size(), h,
                                     <k.Stream> stream)
    return wrong


def optimizer_update_blockwise(int rule, update, uintptr_t qmap1, uintptr_t qmap2,
                               uintptr_t live, uintptr_t workspace, uintptr_t stream):
    """Return -1, or which parameter is wrong; nothing is updated then."""
    cdef vector[k.ParameterUpdate] updates
    cdef k.Hyperparameters h = make_hyperparameters(update.hyperparameters)
    cdef Lists lists = Lists(update, live, workspace)
    cdef Py_ssize_t wrong = lists.read_all(updates)
    if wrong < 0:
        with nogil:
            k.optimizer_update_blockwise(<k.OptimizerRule> rule, lists.bits, updates.data(),
                                         updates.size(), <const float*> qmap1,
                                         <const float*> qmap2, h, <k.Stream> stream)
    return wrong
