// optimizer_update_32bit and _blockwise: one launch for all parameters that share their constants,
// as far as a kernel's arguments have room. Where max_unorm limits the updates, two launches before
// it measure them.
//
// Tiles are dealt to groups in turns, whatever parameter they belong to, by a grid that the device
// holds at a time: so a block makes its tables once, and small tensors fill the device as well as
// one large one.
#pragma once

#include "cuda/optimizer_limits.h"

namespace bnbx::gpu {

__device__ inline void store_parameter(const Parameter& u, const Shared& shared, const Place& place,
                                       const float (&p)[kPerLane]) {
  if (u.rounding == Rounding::kCompensated) {
    Words words, rests;
    compensated(p, words, rests);
    store_words(words, u.p, false, place);
    store_words(rests, u.compensation, false, place);
  } else if (u.rounding == Rounding::kStochastic) {
    const RandomBits random(static_cast<uint64_t>(u.seed), step_of(u.live, shared.step));
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
                                   const Place& place, const typename States::Tables& tables) {
  float step_size = rule.step_size;
  if (shared.max_unorm > 0.0) step_size = step_size * as_float(u.workspace[0]);
  Tile<Rule, States> tile(u, place, tables, rule.gnorm_scale);
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
  store_parameter(u, shared, place, tile.p);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) States::store(tables, u, k, place, tile.states[k]);
}

template <class Rule, class States>
__global__ void __launch_bounds__(kUpdateThreads, kUpdateBlocks<Rule>)
    update_tiles(const Batch batch, const Rule rule, const Shared shared) {
  __shared__ typename States::Tables tables;
  tables.build(shared.qmap1, shared.qmap2, Rule::kStates);
  uint32_t tile = blockIdx.x * kUpdateGroups + threadIdx.x / kGroup;
  for (; tile < batch.units(); tile += gridDim.x * kUpdateGroups) {
    const int i = batch.find(tile);
    const Parameter& u = batch.parameters[i];
    const Place place(u, static_cast<int64_t>(tile - batch.firsts[i]) * kTile);
    update_tile<Rule, States>(u, rule_of(u, shared, rule), shared, place, tables);
  }
}

template <class Rule, class States>
void update_batches(const ParameterUpdate* parameters, int64_t count, const Hyperparameters& h,
                    const float* qmap1, const float* qmap2, Stream stream) {
  for_each_batch<States>(parameters, count, Rule::kStates, [&](Batch& batch, int64_t step) {
    const bool live = batch.parameters[0].live != nullptr;
    const Shared shared{qmap1, qmap2, h.max_unorm, h.skip_zeros, live, step};
    const Rule rule(h, step);
    if (live) launch_rules<Rule>(batch, h, stream);
    if (h.max_unorm > 0.0) launch_limits<Rule, States>(batch, rule, shared, stream);
    const int64_t tiles = deal(batch, kTile);
    if (tiles == 0) return;
    launch<update_tiles<Rule, States>>(update_grid<Rule>(tiles), kUpdateThreads, 0, stream, batch,
                                       rule, shared);
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
