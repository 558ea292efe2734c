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
#include "avx/dequantize_blockwise.h"
#include "avx/parallel.h"
#include "avx/quantize_4bit.h"
#include "avx/quantize_blockwise.h"
#include "avx/sweep.h"
#include "avx/workspace.h"
#include "common/codebooks.h"
#include "common/optimizers.h"

namespace bnbx::cpu {

// The parameters of a call in chunks, the unit of work of a thread.
class Chunks {
 public:
  static constexpr int64_t kSize = 16 * kOptimizerBlocksize;

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

// The map of a 4-bit state, in registers.
template <class V>
struct Map4 {
  typename V::Table16 values;
  Encoder4<V> encode;

  explicit Map4(const float* map) : values(V::table16(map)), encode(ascending_codebook(map)) {}
};

// The maps of states of 8 bits or, where `map4` is set, of 4: state2 has one of its own.
template <class V>
struct StateMaps {
  const float* code[2];
  const Encoder8<V>* encode[2];
  const Map4<V>* map4[2];

  BNBX_MEMBER int64_t blocksize() const {
    return map4[0] == nullptr ? kOptimizerBlocksize : kOptimizerBlocksize4;
  }
};

// One block of a parameter as floats, in the tensors themselves or in the buffers. A last, partial
// vector is whole here; its other lanes are zero.
template <class V>
struct Block {
  const float* g;
  float* p;
  float* states[3];
  float absmax[3];  // of the updated states, if they are to be encoded
  alignas(64) float buffers[5][kOptimizerBlocksize];
};

// Zeroes the lanes of the last vector that hold none of the n values.
template <class V>
static inline void clear_tail(float* values, int64_t n) {
  const int64_t lanes = n % V::kWidth;
  if (lanes != 0) memset(values + n, 0, (V::kWidth - lanes) * sizeof(float));
}

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

// Where a block of a state lies. The third state follows the first in its tensors; of 4 bits, it
// begins with a byte of its own.
struct StateBlock {
  void* state;  // of the whole parameter
  float* absmax;
  int64_t start, number;  // of the block, in elements and in blocks
  int map;

  BNBX_MEMBER StateBlock(const ParameterUpdate& u, int k, int64_t block_start,
                         int64_t blocksize = kOptimizerBlocksize)
      : state(k == 1 ? u.state2 : u.state1),
        absmax(k == 1 ? u.absmax2 : u.absmax1),
        start(k == 2 ? u.numel + block_start : block_start),
        number(block_start / blocksize),
        map(k == 1) {
    if (k == 2) number += ceil_div(u.numel, blocksize);
  }
};

static inline uint8_t* packed_codes(const ParameterUpdate& u, int k, int64_t start) {
  uint8_t* state = static_cast<uint8_t*>(k == 1 ? u.state2 : u.state1);
  return state + (k == 2 ? ceil_div(u.numel, 2) : 0) + start / 2;
}

template <class V>
static inline void open_state4(const ParameterUpdate& u, int k, const Map4<V>& map, int64_t start,
                               int64_t n, float* values) {
  const StateBlock at(u, k, start, kOptimizerBlocksize4);
  const uint8_t* codes = packed_codes(u, k, start);
  const typename V::F32 scale(at.absmax[at.number]);
  const auto table = map.values;
  sweep<V>(n, [&](int64_t i, auto lanes) {
    V::store(values + i, V::lookup(table, load_nibbles<V>(codes + i / 2, lanes)) * scale);
  });
  clear_tail<V>(values, n);
}

template <class V>
static inline void close_state4(const ParameterUpdate& u, int k, const Map4<V>& map, int64_t start,
                                int64_t n, const float* values, float absmax) {
  const StateBlock at(u, k, start, kOptimizerBlocksize4);
  at.absmax[at.number] = absmax;
  encode_4bit_block<V>(values, absmax, n, map.encode, packed_codes(u, k, start));
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
    const RandomBits random(static_cast<uint64_t>(u.seed), u.step);
    store_stochastically<V>(values, n, random, start, static_cast<bfloat16*>(u.p) + start);
  } else {
    with_type(u.p_dtype, [&](auto type) {
      from_floats<V>(values, n, static_cast<decltype(type)*>(u.p) + start);
    });
  }
}

template <class V>
static void open_block(const ParameterUpdate& u, int states, const StateMaps<V>* maps,
                       int64_t start, int64_t n, Block<V>& block) {
  with_type(u.g_dtype, [&](auto type) {
    auto* g = static_cast<const decltype(type)*>(u.g) + start;
    block.g = as_floats<V>(const_cast<decltype(type)*>(g), n, block.buffers[3]);
  });
  block.p = open_parameter<V>(u, start, n, block.buffers[4]);
  for (int k = 0; k < states; ++k) {
    if (maps != nullptr && maps->map4[0] != nullptr) {
      block.states[k] = block.buffers[k];
      open_state4<V>(u, k, *maps->map4[k == 1], start, n, block.states[k]);
      continue;
    }
    const StateBlock at(u, k, start);
    if (maps == nullptr) {
      block.states[k] = as_floats<V>(static_cast<float*>(at.state) + at.start, n, block.buffers[k]);
    } else {
      const uint8_t* codes = static_cast<const uint8_t*>(at.state) + at.start;
      block.states[k] = block.buffers[k];
      dequantize_blockwise_block<V>(codes, at.absmax[at.number], n, maps->code[at.map],
                                    block.states[k]);
      clear_tail<V>(block.states[k], n);
    }
  }
}

template <class V>
static void close_block(const ParameterUpdate& u, int states, const StateMaps<V>* maps,
                        int64_t start, int64_t n, const Block<V>& block) {
  close_parameter<V>(u, start, n, block.p);
  for (int k = 0; k < states; ++k) {
    if (maps != nullptr && maps->map4[0] != nullptr) {
      close_state4<V>(u, k, *maps->map4[k == 1], start, n, block.states[k], block.absmax[k]);
      continue;
    }
    const StateBlock at(u, k, start);
    if (maps == nullptr) {
      from_floats<V>(block.states[k], n, static_cast<float*>(at.state) + at.start);
    } else {
      uint8_t* codes = static_cast<uint8_t*>(at.state) + at.start;
      at.absmax[at.number] = block.absmax[k];
      quantize_blockwise_block<V>(static_cast<const float*>(block.states[k]), block.absmax[k], n,
                                  *maps->encode[at.map], codes);
    }
  }
}

// One block's update; `scale` makes it shorter. `kCodes`: the states are codes. They have lost
// more than the last place of a float, so quick arithmetic will do; and while they are decoded and
// encoded no gradient is read, so the next block's is asked for. States of 32 bits need no asking.
template <class V, bool kCodes, class Rule>
static inline void update_block(const Rule& rule, const Hyperparameters& hyperparameters,
                                float scale, int64_t n, Block<V>& block) {
  using F32 = typename V::F32;
  using F = std::conditional_t<kCodes, typename V::Quick, F32>;
  const F32 gnorm_scale(as_float(hyperparameters.gnorm_scale));
  const F32 decay(rule.decay), step_size(rule.step_size * scale);
  const bool skip_zeros = hyperparameters.skip_zeros;
  typename V::I32 magnitudes[Rule::kStates];
  for (auto& lanes : magnitudes) lanes = typename V::I32(0);
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const F32 g = V::load(block.g + i) * gnorm_scale;
    const F32 p = V::load(block.p + i);
    if constexpr (kCodes) {
      prefetch(block.g + i + kOptimizerBlocksize);
      prefetch(block.p + i + kOptimizerBlocksize);
    }
    F states[Rule::kStates];
    for (int k = 0; k < Rule::kStates; ++k) states[k] = V::load(block.states[k] + i);
    const F32 direction = rule(F(g), F(p), states);
    F32 new_p = p * decay - direction * step_size;
    if (skip_zeros) {
      new_p = V::where_zero(g, p, new_p);
      for (int k = 0; k < Rule::kStates; ++k) {
        states[k] = V::where_zero(g, V::load(block.states[k] + i), states[k]);
      }
    }
    V::store(block.p + i, new_p);
    for (int k = 0; k < Rule::kStates; ++k) {
      V::store(block.states[k] + i, states[k]);
      if constexpr (kCodes) magnitudes[k] = V::max(magnitudes[k], V::abs_bits(states[k]));
    }
  }
  for (int k = 0; k < Rule::kStates; ++k) {
    block.absmax[k] = finite_magnitude<V>(magnitudes[k]);
  }
}

// Writes the directions of one block's update.
template <class V, class Rule>
static inline void directions_of_block(const Rule& rule, const Hyperparameters& hyperparameters,
                                       int64_t n, const Block<V>& block, float* directions) {
  using F32 = typename V::F32;
  const F32 gnorm_scale(as_float(hyperparameters.gnorm_scale));
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const F32 g = V::load(block.g + i) * gnorm_scale;
    F32 states[Rule::kStates];
    for (int k = 0; k < Rule::kStates; ++k) states[k] = V::load(block.states[k] + i);
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
template <class V, class Rule>
static void limit_updates(const Rule* rules, const ParameterUpdate* parameters, int64_t count,
                          const StateMaps<V>* maps, const Hyperparameters& hyperparameters,
                          const Chunks& chunks, float* scales) {
  struct Squares {
    double p, directions;
  };
  const auto sums = allocate<Squares>(chunks.first(count));
  for (int64_t c = 0; c < chunks.first(count); ++c) sums[c] = {0.0, 0.0};
  chunks.for_each_block([&](int64_t chunk, int64_t i, int64_t start, int64_t n) {
    Block<V> block;
    alignas(64) float directions[kOptimizerBlocksize];
    open_block<V>(parameters[i], Rule::kStates, maps, start, n, block);
    directions_of_block<V>(rules[i], hyperparameters, n, block, directions);
    sums[chunk].p += sum_of_squares<V>(block.p, n);
    sums[chunk].directions += sum_of_squares<V>(directions, n);
  });
  for (int64_t i = 0; i < count; ++i) {
    Squares total{0.0, 0.0};
    for (int64_t c = chunks.first(i); c < chunks.first(i + 1); ++c) {
      total.p += sums[c].p;
      total.directions += sums[c].directions;
    }
    const double limit = hyperparameters.max_unorm * std::sqrt(total.p);
    const double norm = std::sqrt(total.directions) * static_cast<double>(rules[i].unit);
    *parameters[i].unorm = as_float(norm);
    scales[i] = limit > 0.0 && norm > limit ? as_float(limit / norm) : 1.0f;
  }
}

template <class V, class Rule>
static void optimizer_update_by(const ParameterUpdate* parameters, int64_t count,
                                const StateMaps<V>* maps, const Hyperparameters& hyperparameters) {
  const auto rules = allocate<Rule>(count);
  const auto scales = allocate<float>(count);
  for (int64_t i = 0; i < count; ++i) {
    const bool again = i > 0 && parameters[i].step == parameters[i - 1].step;
    rules[i] = again ? rules[i - 1] : Rule(hyperparameters, parameters[i].step);
    scales[i] = 1.0f;
  }
  const Chunks chunks(parameters, count, maps == nullptr ? kOptimizerBlocksize : maps->blocksize());
  if (hyperparameters.max_unorm > 0.0) {
    limit_updates<V>(rules.get(), parameters, count, maps, hyperparameters, chunks, scales.get());
  }
  chunks.for_each_block([&](int64_t, int64_t i, int64_t start, int64_t n) {
    Block<V> block;
    open_block<V>(parameters[i], Rule::kStates, maps, start, n, block);
    if (maps == nullptr) {
      update_block<V, false>(rules[i], hyperparameters, scales[i], n, block);
    } else {
      update_block<V, true>(rules[i], hyperparameters, scales[i], n, block);
    }
    close_block<V>(parameters[i], Rule::kStates, maps, start, n, block);
  });
}

template <class V>
static void optimizer_update(OptimizerRule rule, const ParameterUpdate* parameters, int64_t count,
                             const StateMaps<V>* maps, const Hyperparameters& h) {
  switch (rule) {
    case OptimizerRule::kAdam: return optimizer_update_by<V, Adam>(parameters, count, maps, h);
    case OptimizerRule::kMomentum:
      return optimizer_update_by<V, Momentum<false>>(parameters, count, maps, h);
    case OptimizerRule::kNesterov:
      return optimizer_update_by<V, Momentum<true>>(parameters, count, maps, h);
    case OptimizerRule::kRMSprop:
      return optimizer_update_by<V, RMSprop>(parameters, count, maps, h);
    case OptimizerRule::kAdagrad:
      return optimizer_update_by<V, Adagrad>(parameters, count, maps, h);
    case OptimizerRule::kLion: return optimizer_update_by<V, Lion>(parameters, count, maps, h);
    case OptimizerRule::kAdEMAMix:
      return optimizer_update_by<V, AdEMAMix>(parameters, count, maps, h);
  }
}

template <class V>
void optimizer_update_32bit(OptimizerRule rule, const ParameterUpdate* parameters, int64_t count,
                            const Hyperparameters& hyperparameters, Stream) {
  optimizer_update<V>(rule, parameters, count, nullptr, hyperparameters);
}

template <class V>
void optimizer_update_8bit_blockwise(OptimizerRule rule, const ParameterUpdate* parameters,
                                     int64_t count, const float* qmap1, const float* qmap2,
                                     const Hyperparameters& hyperparameters, Stream) {
  const Encoder8<V> encode1(qmap1);
  if (qmap2 == nullptr) {
    const StateMaps<V> maps{{qmap1, nullptr}, {&encode1, nullptr}, {}};
    return optimizer_update<V>(rule, parameters, count, &maps, hyperparameters);
  }
  const Encoder8<V> encode2(qmap2);
  const StateMaps<V> maps{{qmap1, qmap2}, {&encode1, &encode2}, {}};
  optimizer_update<V>(rule, parameters, count, &maps, hyperparameters);
}

template <class V>
void optimizer_update_4bit_blockwise(OptimizerRule rule, const ParameterUpdate* parameters,
                                     int64_t count, const float* qmap1, const float* qmap2,
                                     const Hyperparameters& hyperparameters, Stream) {
  const Map4<V> map1(qmap1), map2(qmap2 == nullptr ? qmap1 : qmap2);
  const StateMaps<V> maps{{}, {}, {&map1, &map2}};
  optimizer_update<V>(rule, parameters, count, &maps, hyperparameters);
}

}  // namespace bnbx::cpu
