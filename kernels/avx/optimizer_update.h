// optimizer_update_32bit, _8bit_blockwise and _4bit_blockwise: one pass over all parameters of a
// call, in chunks of equal size, so that many small tensors are shared as evenly as one large one.
// Where max_unorm limits the updates, a pass before it measures them.
//
// The rules work on floats, a block at a time. What is not float, and what does not fill whole
// vectors, goes through a buffer, so that each rule is compiled once and not for each pair of
// dtypes.
#pragma once

#include <cmath>
#include <type_traits>

#include "avx/bf16_rounding.h"
#include "avx/optimizer_states.h"
#include "avx/parallel.h"
#include "avx/sweep.h"
#include "avx/workspace.h"
#include "common/optimizers.h"

namespace bnbx::cpu {

// How far ahead memory is asked for, in elements: while a block is encoded nothing is read.
static constexpr int64_t kAhead = 2 * kOptimizerBlocksize;

// The parameters of a call in chunks, the unit of work of a thread.
class Chunks {
 public:
  static constexpr int64_t kSize = kSquaresChunk;

  BNBX_MEMBER Chunks(const ParameterUpdate* parameters, int64_t count, int64_t blocksize)
      : parameters_(parameters),
        count_(count),
        blocksize_(blocksize),
        first_(allocate<int64_t>(count + 1)) {
    first_[0] = 0;
    for (int64_t i = 0; i < count; ++i) {
      first_[i + 1] = first_[i] + ceil_div(parameters[i].numel, kSize);
    }
  }

  // Number of the first chunk of a parameter; of all chunks for the one past the last.
  BNBX_MEMBER int64_t first(int64_t parameter) const { return first_[parameter]; }

  // Calls f(chunk, parameter, start, n) for every block of every chunk, in order within a chunk.
  template <class Function>
  BNBX_MEMBER void for_each_block(Function&& f) const {
    parallel_for(first_[count_], 2, [&](int64_t chunk, int64_t end) {
      int64_t i = 0;
      for (; chunk < end; ++chunk) {
        while (first_[i + 1] <= chunk) ++i;
        const int64_t begin = (chunk - first_[i]) * kSize;
        const int64_t stop = smaller(begin + kSize, parameters_[i].numel);
        for (int64_t start = begin; start < stop; start += blocksize_) {
          f(chunk, i, start, smaller(blocksize_, stop - start));
        }
      }
    });
  }

 private:
  const ParameterUpdate* parameters_;
  int64_t count_, blocksize_;
  Workspace<int64_t> first_;
};

// One block of a parameter as floats, in the tensors themselves or in buffers; coded states are
// decoded on the way. A last, partial vector is whole here.
struct Block {
  const float* g;
  float* p;
  float* states[3];         // coded states: of what comes out
  const uint8_t* codes[3];  // of what goes in
  float scales[3];          // their absmax
};

struct Buffers {
  alignas(64) float floats[5][kOptimizerBlocksize];
  alignas(64) uint8_t codes[3][kOptimizerBlocksize + 64];
};

template <class V, class T>
static inline float* as_floats(T* values, int64_t n, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    if (n % V::kWidth == 0) return values;
  }
  sweep<V>(n, [&](int64_t i, auto lanes) { V::store(buffer + i, load<V>(values + i, lanes)); });
  return buffer;
}

template <class V, class T>
static inline void from_floats(const float* floats, int64_t n, T* values) {
  if constexpr (std::is_same_v<T, float>) {
    if (floats == values) return;
  }
  sweep<V>(n, [&](int64_t i, auto lanes) { store<V>(values + i, V::load(floats + i), lanes); });
}

template <class V>
static inline float* open_parameter(const ParameterUpdate& u, int64_t start, int64_t n,
                                    float* buffer) {
  if (u.compensation != nullptr) {
    load_compensated<V>(static_cast<bfloat16*>(u.p) + start,
                        static_cast<bfloat16*>(u.compensation) + start, n, buffer);
    return buffer;
  }
  float* values = nullptr;
  with_type(u.p_dtype, [&](auto type) {
    values = as_floats<V>(static_cast<decltype(type)*>(u.p) + start, n, buffer);
  });
  return values;
}

template <class V>
static inline void close_parameter(const ParameterUpdate& u, int64_t start, int64_t n,
                                   const float* values) {
  if (u.compensation != nullptr) {
    store_compensated<V>(values, n, static_cast<bfloat16*>(u.p) + start,
                         static_cast<bfloat16*>(u.compensation) + start);
  } else if (u.stochastic) {
    const RandomBits random(static_cast<uint64_t>(u.seed), step_of(u.live, u.step));
    store_stochastically<V>(values, n, random, start, static_cast<bfloat16*>(u.p) + start);
  } else {
    with_type(u.p_dtype, [&](auto type) {
      from_floats<V>(values, n, static_cast<decltype(type)*>(u.p) + start);
    });
  }
}

template <class V, class States>
static Block open_block(const ParameterUpdate& u, int states, int64_t start, int64_t n,
                        Buffers& buffers) {
  Block block;
  with_type(u.g_dtype, [&](auto type) {
    auto* g = static_cast<const decltype(type)*>(u.g) + start;
    block.g = as_floats<V>(const_cast<decltype(type)*>(g), n, buffers.floats[3]);
  });
  block.p = open_parameter<V>(u, start, n, buffers.floats[4]);
  for (int k = 0; k < states; ++k) {
    if constexpr (States::kCodes) {
      const uint8_t* codes = States::codes(u, k, start);
      const int64_t bytes = States::bytes(n);
      for (int64_t i = 0; i < bytes; i += 64) prefetch(codes + i + States::bytes(kAhead));
      if (n % V::kWidth != 0) {
        memcpy(buffers.codes[k], codes, bytes);
        memset(buffers.codes[k] + bytes, 0, V::kWidth);
        codes = buffers.codes[k];
      }
      block.codes[k] = codes;
      block.scales[k] = *absmax_of<States>(u, k, start);
      block.states[k] = buffers.floats[k];
    } else {
      block.states[k] = as_floats<V>(States::values(u, k, start), n, buffers.floats[k]);
    }
  }
  return block;
}

template <class V, class States>
static void close_block(const ParameterUpdate& u, int states, const States& stored, int64_t start,
                        int64_t n, const float* absmax, const Block& block) {
  close_parameter<V>(u, start, n, block.p);
  for (int k = 0; k < states; ++k) {
    if constexpr (States::kCodes) {
      *absmax_of<States>(u, k, start) = absmax[k];
      stored.encode(k, block.states[k], absmax[k], n, States::codes(u, k, start));
    } else {
      from_floats<V>(block.states[k], n, States::values(u, k, start));
    }
  }
}

template <class V, class Decoder>
static inline typename V::F32 state_of(const Decoder& decode, const Block& block, int k,
                                       int64_t i) {
  if constexpr (std::is_same_v<Decoder, FloatStates>) {
    return V::load(block.states[k] + i);
  } else {
    return decode(k, block.codes[k], i) * typename V::F32(block.scales[k]);
  }
}

// One block's update; `scale` makes it shorter. Leaves the largest magnitude of each coded state.
// Takes copies: what is known by reference would be read again after each store.
template <class V, class Rule, class Decoder>
static inline void update_block(const Rule rule, const Hyperparameters& hyperparameters,
                                float scale, const Decoder decode, int64_t n, const Block block,
                                float* absmax) {
  constexpr bool kCodes = !std::is_same_v<Decoder, FloatStates>;
  using F32 = typename V::F32;
  using F = std::conditional_t<kCodes, typename V::Fused, F32>;
  const F32 gnorm_scale(rule.gnorm_scale);
  const F32 decay(rule.decay), step_size(rule.step_size * scale);
  const bool skip_zeros = hyperparameters.skip_zeros;
  typename V::I32 magnitudes[Rule::kStates];
  for (auto& lanes : magnitudes) lanes = typename V::I32(0);
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const F32 g = V::load(block.g + i) * gnorm_scale;
    const F32 p = V::load(block.p + i);
    if constexpr (kCodes) {
      prefetch(block.g + i + kAhead);
      prefetch(block.p + i + kAhead);
    }
    F old[Rule::kStates], states[Rule::kStates];
    for (int k = 0; k < Rule::kStates; ++k) old[k] = states[k] = state_of<V>(decode, block, k, i);
    const F direction = rule(F(g), F(p), states);
    F32 new_p = F(p) * F(decay) - direction * F(step_size);
    if (skip_zeros) {
      new_p = V::where_zero(g, p, new_p);
      for (int k = 0; k < Rule::kStates; ++k) states[k] = V::where_zero(g, old[k], states[k]);
    }
    V::store(block.p + i, new_p);
    for (int k = 0; k < Rule::kStates; ++k) {
      V::store(block.states[k] + i, states[k]);
      if constexpr (kCodes) magnitudes[k] = V::max(magnitudes[k], V::abs_bits(states[k]));
    }
  }
  if constexpr (kCodes) {
    const auto magnitude_of = [&](int k) {
      return n % V::kWidth == 0 ? finite_magnitude<V>(magnitudes[k])
                                : finite_absmax<V>(block.states[k], n);
    };
    absmax[0] = magnitude_of(0);  // a loop would keep the magnitudes in memory
    if constexpr (Rule::kStates > 1) absmax[1] = magnitude_of(1);
    if constexpr (Rule::kStates > 2) absmax[2] = magnitude_of(2);
  }
}

// Writes the directions of one block's update.
template <class V, class Rule, class Decoder>
static inline void directions_of_block(const Rule& rule, const Hyperparameters& hyperparameters,
                                       const Decoder decode, int64_t n, const Block& block,
                                       float* directions) {
  using F32 = typename V::F32;
  const F32 gnorm_scale(rule.gnorm_scale);
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const F32 g = V::load(block.g + i) * gnorm_scale;
    F32 states[Rule::kStates];
    for (int k = 0; k < Rule::kStates; ++k) states[k] = state_of<V>(decode, block, k, i);
    F32 direction = rule(g, V::load(block.p + i), states);
    if (hyperparameters.skip_zeros) direction = V::where_zero(g, F32(0.0f), direction);
    V::store(directions + i, direction);
  }
}

template <class V>
static double sum_of_squares(const float* values, int64_t n) {
  typename V::F32 sum(0.0f);
  sweep<V>(n, [&](int64_t i, auto lanes) {
    const auto x = load<V>(values + i, lanes);
    sum = sum + x * x;
  });
  return static_cast<double>(V::sum(sum));
}

// Sets the factor that max_unorm leaves to each parameter's update. A parameter that is zero
// throughout may move freely: no share of its norm would ever let it.
//
// The sums are added up in the order of the blocks, whatever thread has made them.
template <class V, class Rule, class States>
static void limit_updates(const Rule* rules, const ParameterUpdate* parameters, int64_t count,
                          const States& stored, const Hyperparameters& hyperparameters,
                          const Chunks& chunks, float* scales) {
  const auto sums_of = [&](int64_t chunk, int64_t i) {
    return parameters[i].workspace + kFirstSquares + 2 * (chunk - chunks.first(i));
  };
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = chunks.first(i); c < chunks.first(i + 1); ++c) {
      sums_of(c, i)[0] = sums_of(c, i)[1] = 0.0;
    }
  }
  chunks.for_each_block([&](int64_t chunk, int64_t i, int64_t start, int64_t n) {
    Buffers buffers;
    alignas(64) float directions[kOptimizerBlocksize];
    const Block block = open_block<V, States>(parameters[i], Rule::kStates, start, n, buffers);
    directions_of_block<V>(rules[i], hyperparameters, stored.decoder(), n, block, directions);
    sums_of(chunk, i)[0] += sum_of_squares<V>(block.p, n);
    sums_of(chunk, i)[1] += sum_of_squares<V>(directions, n);
  });
  for (int64_t i = 0; i < count; ++i) {
    double p = 0.0, updates = 0.0;
    for (int64_t c = chunks.first(i); c < chunks.first(i + 1); ++c) {
      p += sums_of(c, i)[0];
      updates += sums_of(c, i)[1];
    }
    const double limit = hyperparameters.max_unorm * std::sqrt(p);
    const double norm = std::sqrt(updates) * static_cast<double>(rules[i].unit);
    *parameters[i].unorm = as_float(norm);
    scales[i] = limit > 0.0 && norm > limit ? as_float(limit / norm) : 1.0f;
  }
}

template <class V, class Rule, class States>
static void optimizer_update_by(const ParameterUpdate* parameters, int64_t count,
                                const States& stored, const Hyperparameters& hyperparameters) {
  const auto rules = allocate<Rule>(count);
  const auto scales = allocate<float>(count);
  for (int64_t i = 0; i < count; ++i) {
    const double* live = parameters[i].live;
    const bool again = i > 0 && live == nullptr && parameters[i].step == parameters[i - 1].step;
    const auto& h = hyperparameters;
    rules[i] = again             ? rules[i - 1]
               : live != nullptr ? live_rule<Rule>(h, live)
                                 : Rule(h, parameters[i].step);
    scales[i] = 1.0f;
  }
  const Chunks chunks(parameters, count, States::kBlocksize);
  if (hyperparameters.max_unorm > 0.0) {
    limit_updates<V>(rules.get(), parameters, count, stored, hyperparameters, chunks, scales.get());
  }
  chunks.for_each_block([&](int64_t, int64_t i, int64_t start, int64_t n) {
    Buffers buffers;
    float absmax[Rule::kStates];
    const Block block = open_block<V, States>(parameters[i], Rule::kStates, start, n, buffers);
    update_block<V>(rules[i], hyperparameters, scales[i], stored.decoder(), n, block, absmax);
    close_block<V>(parameters[i], Rule::kStates, stored, start, n, absmax, block);
  });
}

// A type as a value.
template <class T>
struct Named {
  using Type = T;
};

template <class V, class States>
static void optimizer_update(OptimizerRule rule, const ParameterUpdate* parameters, int64_t count,
                             const States& stored, const Hyperparameters& h) {
  const auto update = [&](auto by) {
    return optimizer_update_by<V, typename decltype(by)::Type>(parameters, count, stored, h);
  };
  switch (rule) {
    case OptimizerRule::kAdam: return update(Named<Adam>{});
    case OptimizerRule::kMomentum: return update(Named<Momentum<false>>{});
    case OptimizerRule::kNesterov: return update(Named<Momentum<true>>{});
    case OptimizerRule::kRMSprop: return update(Named<RMSprop>{});
    case OptimizerRule::kAdagrad: return update(Named<Adagrad>{});
    case OptimizerRule::kLion: return update(Named<Lion>{});
    case OptimizerRule::kAdEMAMix: return update(Named<AdEMAMix>{});
  }
}

template <class V>
void optimizer_update_32bit(OptimizerRule rule, const ParameterUpdate* parameters, int64_t count,
                            const Hyperparameters& hyperparameters, Stream) {
  optimizer_update<V>(rule, parameters, count, FloatStates{}, hyperparameters);
}

// `Encoder` finds the nearest entries of a map.
template <class V, class Encoder = Encoder8<V>>
void optimizer_update_8bit_blockwise(OptimizerRule rule, const ParameterUpdate* parameters,
                                     int64_t count, const float* qmap1, const float* qmap2,
                                     const Hyperparameters& hyperparameters, Stream) {
  const Encoder encoder1(qmap1);
  if (qmap2 == nullptr) {
    const States8<V, Encoder> stored{{qmap1, nullptr}, {&encoder1, nullptr}};
    return optimizer_update<V>(rule, parameters, count, stored, hyperparameters);
  }
  const Encoder encoder2(qmap2);
  const States8<V, Encoder> stored{{qmap1, qmap2}, {&encoder1, &encoder2}};
  optimizer_update<V>(rule, parameters, count, stored, hyperparameters);
}

template <class V>
void optimizer_update_4bit_blockwise(OptimizerRule rule, const ParameterUpdate* parameters,
                                     int64_t count, const float* qmap1, const float* qmap2,
                                     const Hyperparameters& hyperparameters, Stream) {
  if (qmap2 == nullptr) qmap2 = qmap1;
  const States4<V> stored{
      {V::table16(qmap1), V::table16(qmap2)},
      {Encoder4<V>(ascending_codebook(qmap1)), Encoder4<V>(ascending_codebook(qmap2))}};
  optimizer_update<V>(rule, parameters, count, stored, hyperparameters);
}

}  // namespace bnbx::cpu
