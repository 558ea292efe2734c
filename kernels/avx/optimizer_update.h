// optimizer_update_32bit and optimizer_update_8bit_blockwise: one pass over all parameters of a
// call, in chunks of equal size, so that many small tensors are shared as evenly as one large one.
#pragma once

#include "avx/dequantize_blockwise.h"
#include "avx/parallel.h"
#include "avx/quantize_blockwise.h"
#include "avx/sweep.h"
#include "avx/workspace.h"
#include "common/codebooks.h"
#include "common/optimizers.h"

namespace bnbx::cpu {

static constexpr int64_t kChunk = 16 * kOptimizerBlocksize;

// Calls f(parameter, begin, end) for every chunk of every parameter; begin is a multiple of kChunk.
template <class Function>
static inline void for_each_chunk(const ParameterUpdate* parameters, int64_t count, Function&& f) {
  const auto first_chunk = allocate<int64_t>(count + 1);
  first_chunk[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    first_chunk[i + 1] = first_chunk[i] + ceil_div(parameters[i].numel, kChunk);
  }
  parallel_for(first_chunk[count], 2, [&](int64_t chunk, int64_t end) {
    int64_t i = 0;
    for (; chunk < end; ++chunk) {
      while (first_chunk[i + 1] <= chunk) ++i;
      const int64_t begin = (chunk - first_chunk[i]) * kChunk;
      f(i, begin, smaller(begin + kChunk, parameters[i].numel));
    }
  });
}

// Calls f with the rule's constants for each parameter.
template <class Function>
static inline void with_rule(OptimizerRule rule, const ParameterUpdate* parameters, int64_t count,
                             const Hyperparameters& hyperparameters, Function&& f) {
  switch (rule) {
    case OptimizerRule::kAdam: {
      const auto rules = allocate<Adam>(count);
      for (int64_t i = 0; i < count; ++i) {
        rules[i] = Adam(hyperparameters, parameters[i].step);
      }
      return f(rules.get());
    }
  }
}

// Applies the rule to n elements whose states are float.
template <class V, class Rule, class G, class P>
static inline void update_range(const Rule& rule, const Hyperparameters& hyperparameters,
                                const G* g, P* p, float* state1, float* state2, int64_t n) {
  using F32 = typename V::F32;
  const F32 gnorm_scale(static_cast<float>(hyperparameters.gnorm_scale));
  sweep<V>(n, [&](int64_t i, auto lanes) {
    const F32 gradient = load<V>(g + i, lanes) * gnorm_scale;
    const F32 old_p = load<V>(p + i, lanes);
    const F32 old1 = load<V>(state1 + i, lanes);
    const F32 old2 = load<V>(state2 + i, lanes);
    F32 new_p = old_p, new1 = old1, new2 = old2;
    rule(gradient, new_p, new1, new2);
    if (hyperparameters.skip_zeros) {
      new_p = V::where_zero(gradient, old_p, new_p);
      new1 = V::where_zero(gradient, old1, new1);
      new2 = V::where_zero(gradient, old2, new2);
    }
    store<V>(p + i, new_p, lanes);
    store<V>(state1 + i, new1, lanes);
    store<V>(state2 + i, new2, lanes);
  });
}

template <class Function>
static inline void with_gradient_and_parameter(const ParameterUpdate& u, Function&& f) {
  with_type(u.g_dtype, [&](auto g_type) {
    with_type(u.p_dtype, [&](auto p_type) {
      f(static_cast<const decltype(g_type)*>(u.g), static_cast<decltype(p_type)*>(u.p));
    });
  });
}

template <class V>
void optimizer_update_32bit(OptimizerRule rule, const ParameterUpdate* parameters, int64_t count,
                            const Hyperparameters& hyperparameters, Stream) {
  with_rule(rule, parameters, count, hyperparameters, [&](const auto* rules) {
    for_each_chunk(parameters, count, [&](int64_t index, int64_t begin, int64_t end) {
      const ParameterUpdate& u = parameters[index];
      with_gradient_and_parameter(u, [&](const auto* g, auto* p) {
        update_range<V>(rules[index], hyperparameters, g + begin, p + begin,
                        static_cast<float*>(u.state1) + begin,
                        static_cast<float*>(u.state2) + begin, end - begin);
      });
    });
  });
}

template <class V>
void optimizer_update_8bit_blockwise(OptimizerRule rule, const ParameterUpdate* parameters,
                                     int64_t count, const float* qmap1, const float* qmap2,
                                     const Hyperparameters& hyperparameters, Stream) {
  const Encoder8<V> encode1(qmap1);
  const Encoder8<V> encode2(qmap2);
  with_rule(rule, parameters, count, hyperparameters, [&](const auto* rules) {
    for_each_chunk(parameters, count, [&](int64_t index, int64_t begin, int64_t end) {
      const ParameterUpdate& u = parameters[index];
      with_gradient_and_parameter(u, [&](const auto* g, auto* p) {
        alignas(64) float state1[kOptimizerBlocksize];
        alignas(64) float state2[kOptimizerBlocksize];
        for (int64_t i = begin; i < end; i += kOptimizerBlocksize) {
          const int64_t n = smaller(kOptimizerBlocksize, end - i);
          uint8_t* codes1 = static_cast<uint8_t*>(u.state1) + i;
          uint8_t* codes2 = static_cast<uint8_t*>(u.state2) + i;
          float& absmax1 = u.absmax1[i / kOptimizerBlocksize];
          float& absmax2 = u.absmax2[i / kOptimizerBlocksize];
          dequantize_blockwise_block<V>(codes1, absmax1, n, qmap1, state1);
          dequantize_blockwise_block<V>(codes2, absmax2, n, qmap2, state2);
          update_range<V>(rules[index], hyperparameters, g + i, p + i, state1, state2, n);
          absmax1 = quantize_blockwise_block<V>(state1, n, encode1, codes1);
          absmax2 = quantize_blockwise_block<V>(state2, n, encode2, codes2);
        }
      });
    });
  });
}

}  // namespace bnbx::cpu
