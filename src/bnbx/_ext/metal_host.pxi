"""What the backend for Metal computes on the host: a part of its module, and of the emulator's."""

from libc.stdint cimport int64_t, uintptr_t
from libcpp cimport bool as cpp_bool
from libcpp.string cimport string
from libcpp.vector cimport vector

from bnbx._ext cimport kernels as k


cdef extern from "common/operations.h" namespace "bnbx":
    vector[string] every_operation()

cdef extern from "metal/host.h" namespace "bnbx::metal_host" nogil:
    vector[float] c_rule_constants "bnbx::metal_host::rule_constants"(
        k.OptimizerRule rule, const k.Hyperparameters& hyperparameters, int64_t step) except +
    void c_read_quantiles "bnbx::metal_host::read_quantiles"(
        const int64_t* counts, int64_t n, double offset, int64_t num_quantiles, cpp_bool exact,
        float* out)


def operations():
    """Return the names of the operations that this backend implements."""
    return [name.decode() for name in every_operation()]


def codebook_4bit(int quant_type):
    """Return the kernels' table of a 4-bit type, to compare with the one in bnbx.codebooks."""
    book = k.kNF4 if quant_type == <int> k.QuantType.kNF4 else k.kFP4
    return [book.values[i] for i in range(16)]


def rule_constants(int rule, double lr, double beta1, double beta2, double beta3, double alpha,
                   double eps, double weight_decay, double gnorm_scale, bint skip_zeros,
                   double max_unorm, int64_t step):
    """Return the constants of an update rule in a step, as its kernels take them."""
    cdef k.Hyperparameters h
    h.lr, h.beta1, h.beta2, h.beta3, h.alpha = lr, beta1, beta2, beta3, alpha
    h.eps, h.weight_decay, h.gnorm_scale = eps, weight_decay, gnorm_scale
    h.skip_zeros, h.max_unorm = skip_zeros, max_unorm
    cdef vector[float] constants = c_rule_constants(<k.OptimizerRule> rule, h, step)
    return [constants[i] for i in range(constants.size())]


def read_quantiles(uintptr_t counts, int64_t n, double offset, int64_t num_quantiles, bint exact,
                   uintptr_t out):
    """Write the quantiles of values that have been counted; both in the host's memory."""
    with nogil:
        c_read_quantiles(<const int64_t*> counts, n, offset, num_quantiles, exact, <float*> out)
