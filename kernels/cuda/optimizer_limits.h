// Launches before an update: the constants of the rules where step and learning rate are on the
// device, and the factor that max_unorm leaves to each parameter's update.
//
// The sums of squares are added up in the order of the elements, whatever group has made them, and
// whatever other parameters there are.
#pragma once

#include "cuda/optimizer_tile.h"

namespace bnbx::gpu {

template <class Rule>
__global__ void __launch_bounds__(kUpdateThreads)
    set_rules(const Batch batch, const Hyperparameters hyperparameters) {
  static_assert(sizeof(Rule) <= kRuleNumbers * sizeof(double), "the workspace is too small");
  const int i = static_cast<int>(blockIdx.x * kUpdateThreads + threadIdx.x);
  if (i >= batch.count) return;
  const Parameter& u = batch.parameters[i];
  *reinterpret_cast<Rule*>(u.workspace + 1) = live_rule<Rule>(hyperparameters, u.live);
}

struct Squares {
  double p, directions;
};

// A group takes a chunk.
template <class Rule, class States>
__device__ inline Squares squares_of_chunk(const Parameter& u, const Rule& rule,
                                           const Shared& shared, int64_t start,
                                           const typename States::Tables& tables) {
  Squares sums{0.0, 0.0};
  const int64_t end = start + kSquaresChunk < u.numel ? start + kSquaresChunk : u.numel;
  for (; start < end; start += kTile) {
    const Place place(u, start);
    Tile<Rule, States> tile(u, place, tables, rule.gnorm_scale);
    float p = 0.0f, directions = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const float direction = tile.move(rule, i);
      p += tile.p[i] * tile.p[i];
      const bool moves = !(shared.skip_zeros && tile.g[i] == 0.0f);
      if (moves && place.has(i / kRun, i % kRun)) directions += direction * direction;
    }
    sums.p += static_cast<double>(p);
    sums.directions += static_cast<double>(directions);
  }
  return {group_sum(sums.p), group_sum(sums.directions)};
}

// Units are chunks.
template <class Rule, class States>
__global__ void __launch_bounds__(kUpdateThreads, kUpdateBlocks<Rule>)
    sum_squares(const Batch batch, const Rule rule, const Shared shared) {
  __shared__ typename States::Tables tables;
  tables.build(shared.qmap1, shared.qmap2, Rule::kStates);
  uint32_t chunk = blockIdx.x * kUpdateGroups + threadIdx.x / kGroup;
  for (; chunk < batch.units(); chunk += gridDim.x * kUpdateGroups) {
    const int i = batch.find(chunk);
    const Parameter& u = batch.parameters[i];
    const int64_t number = chunk - batch.firsts[i];
    const Squares sums = squares_of_chunk<Rule, States>(u, rule_of(u, shared, rule), shared,
                                                        number * kSquaresChunk, tables);
    if (threadIdx.x % kGroup == 0) {
      double* to = u.workspace + kFirstSquares + 2 * number;
      to[0] = sums.p;
      to[1] = sums.directions;
    }
  }
}

// A block takes a parameter. One that is zero throughout may move freely: no share of its norm
// would ever let it.
template <class Rule>
__global__ void __launch_bounds__(kUpdateThreads)
    set_limits(const Batch batch, const Rule rule, const Shared shared) {
  __shared__ Squares of_groups[kUpdateGroups];
  const Parameter& u = batch.parameters[blockIdx.x];
  const int64_t chunks = (u.numel + kSquaresChunk - 1) / kSquaresChunk;
  Squares sums{0.0, 0.0};
  for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kUpdateThreads) {
    const double* from = u.workspace + kFirstSquares + 2 * chunk;
    sums.p += from[0];
    sums.directions += from[1];
  }
  sums = {group_sum(sums.p), group_sum(sums.directions)};
  if (threadIdx.x % kGroup == 0) of_groups[threadIdx.x / kGroup] = sums;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kUpdateGroups; ++i) {
    sums.p += of_groups[i].p;
    sums.directions += of_groups[i].directions;
  }
  const double limit = shared.max_unorm * std::sqrt(sums.p);
  const double unit = static_cast<double>(rule_of(u, shared, rule).unit);
  const double norm = std::sqrt(sums.directions) * unit;
  *u.unorm = as_float(norm);
  u.workspace[0] = limit > 0.0 && norm > limit ? limit / norm : 1.0;
}

template <class Rule>
void launch_rules(const Batch& batch, const Hyperparameters& h, Stream stream) {
  const int64_t blocks = ceil_div(batch.count, kUpdateThreads);
  launch<set_rules<Rule>>(Blocks(static_cast<unsigned>(blocks)), kUpdateThreads, 0, stream, batch,
                          h);
}

template <class Rule, class States>
void launch_limits(Batch& batch, const Rule& rule, const Shared& shared, Stream stream) {
  const int64_t chunks = deal(batch, kSquaresChunk);
  if (chunks > 0) {
    launch<sum_squares<Rule, States>>(update_grid<Rule>(chunks), kUpdateThreads, 0, stream, batch,
                                      rule, shared);
  }
  launch<set_limits<Rule>>(Blocks(batch.count), kUpdateThreads, 0, stream, batch, rule, shared);
}

}  // namespace bnbx::gpu
