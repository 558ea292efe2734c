// optimizer_update_32bit and _blockwise: one launch for all parameters that share their constants,
// as far as a kernel's arguments have room. Where max_unorm limits the updates, two launches before
// it measure them.
//
// Tiles are dealt to groups in turns, whatever parameter they belong to, by a grid that the device
// holds at a time: so a block makes its tables once, and small tensors fill the device as well as
// one large one.
#pragma once

#include <cmath>

#include "cuda/optimizer_states.h"

namespace bnbx::gpu {

static constexpr int kUpdateThreads = 256;
static constexpr int kUpdateGroups = kUpdateThreads / kGroup;
static constexpr int kUpdateBlocks = 3;  // of a multiprocessor at a time: 80 registers a thread

// What parameters of a call share beside the constants of the rule.
struct Shared {
  float gnorm_scale;
  bool skip_zeros;
  double max_unorm;
};

// Values of a lane's elements before an update.
template <class Rule, class States>
struct Tile {
  float g[kPerLane], p[kPerLane], states[Rule::kStates][kPerLane];

  // Everything is asked for before any of it is waited for.
  __device__ Tile(const Parameter& u, const Place& place, const typename States::Tables& tables,
                  float gnorm_scale) {
    const DType g_dtype = static_cast<DType>(u.g_dtype), p_dtype = static_cast<DType>(u.p_dtype);
    const Words g_words = load_words(u.g, g_dtype == DType::kFloat32, place);
    const Words p_words = load_words(u.p, p_dtype == DType::kFloat32, place);
    Words rest_words;
    if (u.compensation != nullptr) rest_words = load_words(u.compensation, false, place);
    typename States::Stored stored[Rule::kStates];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) stored[k] = States::load(u, k, place);
    to_floats(g_words, g_dtype, g);
    to_floats(p_words, p_dtype, p);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) g[i] = g[i] * gnorm_scale;
    if (u.compensation != nullptr) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) p[i] = p[i] + element<bfloat16>(rest_words, i);
    }
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) States::decode(tables, k, stored[k], states[k]);
  }

  // Updates the states of one element and returns the direction in which it moves.
  __device__ float move(const Rule& rule, int i) {
    float moved[Rule::kStates];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) moved[k] = states[k][i];
    const float direction = rule(g[i], p[i], moved);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) states[k][i] = moved[k];
    return direction;
  }
};

__device__ inline void store_parameter(const Parameter& u, int64_t step, const Place& place,
                                       const float (&p)[kPerLane]) {
  if (u.compensation != nullptr) {
    Words words, rests;
    compensated(p, words, rests);
    store_words(words, u.p, false, place);
    store_words(rests, u.compensation, false, place);
  } else if (u.stochastic) {
    const RandomBits random(static_cast<uint64_t>(u.seed), step);
    store_words(rounded_stochastically(p, random, place), u.p, false, place);
  } else if (static_cast<DType>(u.p_dtype) == DType::kFloat32) {
    store_words(from_floats<float>(p), u.p, true, place);
  } else if (static_cast<DType>(u.p_dtype) == DType::kBFloat16) {
    store_words(from_floats<bfloat16>(p), u.p, false, place);
  } else {
    store_words(from_floats<float16>(p), u.p, false, place);
  }
}

template <class Rule, class States>
__device__ inline void update_tile(const Parameter& u, const Rule& rule, const Shared& shared,
                                   int64_t step, const Place& place,
                                   const typename States::Tables& tables) {
  float step_size = rule.step_size;
  if (u.squares != nullptr) step_size = step_size * static_cast<float>(u.squares[0]);
  Tile<Rule, States> tile(u, place, tables, shared.gnorm_scale);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    float old[Rule::kStates];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) old[k] = tile.states[k][i];
    const float direction = tile.move(rule, i);
    const float moved = tile.p[i] * rule.decay - direction * step_size;
    const bool skipped = shared.skip_zeros && tile.g[i] == 0.0f;
    const bool inside = place.has(i / kRun, i % kRun);
    tile.p[i] = skipped ? tile.p[i] : moved;
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      if (skipped) tile.states[k][i] = old[k];
      if (!inside) tile.states[k][i] = 0.0f;
    }
  }
  store_parameter(u, step, place, tile.p);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) States::store(tables, u, k, place, tile.states[k]);
}

template <class Rule, class States>
__global__ void __launch_bounds__(kUpdateThreads, kUpdateBlocks)
    update_tiles(const Batch batch, const Rule rule, const Shared shared, const int64_t step,
                 const float* qmap1, const float* qmap2) {
  __shared__ typename States::Tables tables;
  tables.build(qmap1, qmap2, Rule::kStates);
  uint32_t tile = blockIdx.x * kUpdateGroups + threadIdx.x / kGroup;
  for (; tile < batch.tiles(); tile += gridDim.x * kUpdateGroups) {
    const int i = batch.find(tile);
    const Parameter& u = batch.parameters[i];
    const Place place(u, static_cast<int64_t>(tile - batch.firsts[i]) * kTile);
    update_tile<Rule, States>(u, rule, shared, step, place, tables);
  }
}

template <class Rule, class States>
void update_batches(const ParameterUpdate* parameters, int64_t count, const Hyperparameters& h,
                    const float* qmap1, const float* qmap2, Stream stream) {
  const Shared shared{as_float(h.gnorm_scale), h.skip_zeros, h.max_unorm};
  for_each_batch<States>(parameters, count, Rule::kStates, [&](const Batch& batch, int64_t step) {
    const Rule rule(h, step);
    const int blocks = static_cast<int>(std::min<int64_t>(
        ceil_div(batch.firsts[batch.count], kUpdateGroups), kUpdateBlocks * multiprocessors()));
    if (blocks == 0) return;
    launch(update_tiles<Rule, States>, Blocks(blocks), kUpdateThreads, 0, stream, batch, rule,
           shared, step, qmap1, qmap2);
  });
}

// A type as a value.
template <class T>
struct Named {
  using Type = T;
};

template <class States>
void update(OptimizerRule rule, const ParameterUpdate* parameters, int64_t count,
            const float* qmap1, const float* qmap2, const Hyperparameters& h, Stream stream) {
  const auto by = [&](auto named) {
    using Rule = typename decltype(named)::Type;
    update_batches<Rule, States>(parameters, count, h, qmap1, qmap2, stream);
  };
  switch (rule) {
    case OptimizerRule::kAdam: return by(Named<Adam>{});
    case OptimizerRule::kMomentum: return by(Named<Momentum<false>>{});
    case OptimizerRule::kNesterov: return by(Named<Momentum<true>>{});
    case OptimizerRule::kRMSprop: return by(Named<RMSprop>{});
    case OptimizerRule::kAdagrad: return by(Named<Adagrad>{});
    case OptimizerRule::kLion: return by(Named<Lion>{});
    case OptimizerRule::kAdEMAMix: return by(Named<AdEMAMix>{});
  }
}

}  // namespace bnbx::gpu
