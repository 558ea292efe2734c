// optimizer_update_32bit and _blockwise: a launch for each parameter. Where max_unorm limits the
// update, two launches before it measure it.
#pragma once

#include "metal/optimizer_states.h"

namespace bnbx {

// A rule whose constants are numbers in its order (see common/optimizers.h).
template <class Rule>
BNBX_INLINE Rule rule_from(constant float* constants) {
  Rule rule;
  thread float* to = reinterpret_cast<thread float*>(&rule);
  for (uint i = 0; i < sizeof(Rule) / sizeof(float); ++i) to[i] = constants[i];
  return rule;
}

// What belongs to one state.
template <uint kBits>
BNBX_INLINE StateMemory memory_of(int state, ulong numel, device void* state1, device void* state2,
                                  device float* absmax1, device float* absmax2,
                                  const device float* qmap1, const device float* qmap2,
                                  const threadgroup float* bounds) {
  device void* of = state == 1 ? state2 : state1;
  const ulong before = state == 2 ? numel : 0;
  const ulong tile = Layout<kBits>::kTile;
  StateMemory out;
  out.values = static_cast<device float*>(of) + before;
  out.codes = static_cast<device uchar*>(of) + (kBits == 4 ? (before + 1) / 2 : before);
  out.absmax = (state == 1 ? absmax2 : absmax1) + (before + tile - 1) / tile;
  out.map = state == 1 ? qmap2 : qmap1;
  out.bounds = state == 1 && bounds != nullptr ? bounds + 255 : bounds;
  return out;
}

// One element: its gradient, parameter and states before the update, and after it.
template <class Rule>
struct Element {
  float g, p, states[Rule::kStates];
  bool skipped;

  // Updates the states and returns the direction in which the parameter moves.
  BNBX_MEMBER float move(Rule rule) {
    float moved[Rule::kStates];
    for (int k = 0; k < Rule::kStates; ++k) moved[k] = states[k];
    const float direction = rule(g, p, moved);
    if (skipped) return 0.0f;
    for (int k = 0; k < Rule::kStates; ++k) states[k] = moved[k];
    return direction;
  }
};

template <class Rule, uint kBits>
BNBX_INLINE Element<Rule> load_element(constant long* options, const device void* g,
                                       const device void* p, const device bfloat16* rest,
                                       float gnorm_scale, const thread StateMemory* memory,
                                       ulong at, ulong tile) {
  Element<Rule> out;
  out.g = load(g, options[kGDtype], at) * gnorm_scale;
  out.p = load(p, options[kPDtype], at);
  if (options[kRounding] == kCompensated) out.p = out.p + element(rest, at);
  for (int k = 0; k < Rule::kStates; ++k) {
    out.states[k] = States<kBits>::decode(memory[k], at, tile);
  }
  out.skipped = options[kSkipZeros] != 0 && out.g == 0.0f;
  return out;
}

BNBX_INLINE void store_parameter(constant long* options, device void* p, device bfloat16* rest,
                                 ulong at, float x) {
  if (options[kRounding] == kStochastic) {
    const RandomBits random(ulong(options[kSeed]), options[kStep]);
    static_cast<device bfloat16*>(p)[at].bits = rounded_stochastically(x, random, at).bits;
    return;
  }
  store(p, options[kPDtype], at, x);
  if (options[kRounding] == kCompensated) rest[at].bits = rest_of(x).bits;
}

}  // namespace bnbx

// `factor` is what max_unorm leaves to the update, where it is limited.
template <class Rule, uint kBits>
BNBX_KERNEL void update(constant long* options, constant float* constants, const device void* g,
                        device void* p, device bfloat16* rest, device void* state1,
                        device void* state2, device float* absmax1, device float* absmax2,
                        const device float* qmap1, const device float* qmap2,
                        const device float* factor, BNBX_PLACE) {
  using Here = Layout<kBits>;
  BNBX_SHARED float bounds[2 * 255];
  if (kBits != 32) {
    if (tid < Here::kEntries - 1) {
      bounds[tid] = bound_after(qmap1, tid);
      if (Rule::kStates > 1) bounds[255 + tid] = bound_after(qmap2, tid);
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  }
  const ulong numel = options[kNumel], tile = simd_number(block, simd);
  const Rule rule = rule_from<Rule>(constants);
  const float step_size = options[kIsLimited] != 0 ? rule.step_size * factor[0] : rule.step_size;
  StateMemory memory[Rule::kStates];
  for (int k = 0; k < Rule::kStates; ++k) {
    memory[k] = memory_of<kBits>(k, numel, state1, state2, absmax1, absmax2, qmap1, qmap2, bounds);
  }
  float states[Rule::kStates][Here::kPerLane];
  for (uint i = 0; i < Here::kPerLane; ++i) {
    for (int k = 0; k < Rule::kStates; ++k) states[k][i] = 0.0f;
    const ulong at = tile * Here::kTile + Here::position(lane, i);
    if (at >= numel) continue;
    Element<Rule> element =
        load_element<Rule, kBits>(options, g, p, rest, rule.gnorm_scale, memory, at, tile);
    const float direction = element.move(rule);
    const float moved = element.p * rule.decay - direction * step_size;
    store_parameter(options, p, rest, at, element.skipped ? element.p : moved);
    for (int k = 0; k < Rule::kStates; ++k) states[k][i] = element.states[k];
  }
  for (int k = 0; k < Rule::kStates; ++k) {
    States<kBits>::encode(memory[k], numel, tile, lane, states[k]);
  }
}

// Sums of squares, of the parameter and of the update's direction, two for each tile.
template <class Rule, uint kBits>
BNBX_KERNEL void measure(constant long* options, constant float* constants, const device void* g,
                         device void* p, device bfloat16* rest, device void* state1,
                         device void* state2, device float* absmax1, device float* absmax2,
                         const device float* qmap1, const device float* qmap2, device float* sums,
                         BNBX_PLACE) {
  using Here = Layout<kBits>;
  const ulong numel = options[kNumel], tile = simd_number(block, simd);
  const Rule rule = rule_from<Rule>(constants);
  StateMemory memory[Rule::kStates];
  for (int k = 0; k < Rule::kStates; ++k) {
    memory[k] = memory_of<kBits>(k, numel, state1, state2, absmax1, absmax2, qmap1, qmap2, nullptr);
  }
  float of_p = 0.0f, of_directions = 0.0f;
  for (uint i = 0; i < Here::kPerLane; ++i) {
    const ulong at = tile * Here::kTile + Here::position(lane, i);
    if (at >= numel) continue;
    Element<Rule> element =
        load_element<Rule, kBits>(options, g, p, rest, rule.gnorm_scale, memory, at, tile);
    const float direction = element.move(rule);
    of_p += element.p * element.p;
    of_directions += direction * direction;
  }
  of_p = metal::simd_sum(of_p);
  of_directions = metal::simd_sum(of_directions);
  if (lane == 0 && tile * Here::kTile < numel) {
    sums[2 * tile] = of_p;
    sums[2 * tile + 1] = of_directions;
  }
}
