// A tile of a parameter in the registers of a group, and the kernels that work on them.
#pragma once

#include "cuda/optimizer_states.h"

namespace bnbx::gpu {

static constexpr int kUpdateThreads = 256;
static constexpr int kUpdateGroups = kUpdateThreads / kGroup;
// Of a multiprocessor at a time, so that a thread has 80 registers, with three states 128.
template <class Rule>
static constexpr int kUpdateBlocks = Rule::kStates < 3 ? 3 : 2;

// What the parameters of a call share.
struct Shared {
  const float* qmap1;
  const float* qmap2;
  double max_unorm;
  bool skip_zeros;
  bool live;  // the constants of a rule are not the kernel's argument but in the workspace
  int64_t step;
};

// The constants of a parameter's rule.
template <class Rule>
__device__ inline Rule rule_of(const Parameter& u, const Shared& shared, const Rule& rule) {
  return shared.live ? *reinterpret_cast<const Rule*>(u.workspace + 1) : rule;
}

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
    if (u.rounding == Rounding::kCompensated) rest_words = load_words(u.compensation, false, place);
    typename States::Stored stored[Rule::kStates];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) stored[k] = States::load(u, k, place);
    to_floats(g_words, g_dtype, g);
    to_floats(p_words, p_dtype, p);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) g[i] = g[i] * gnorm_scale;
    if (u.rounding == Rounding::kCompensated) {
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

// A grid whose groups take the units in turns.
template <class Rule>
Blocks update_grid(int64_t units) {
  const int64_t most = int64_t{kUpdateBlocks<Rule>} * multiprocessors();
  const int64_t blocks = ceil_div(units, kUpdateGroups);
  return Blocks(static_cast<unsigned>(blocks < most ? blocks : most));
}

}  // namespace bnbx::gpu
