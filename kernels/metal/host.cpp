#include "metal/host.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "common/quantiles.h"

namespace bnbx::metal_host {
namespace {

template <class Rule>
std::vector<float> constants_of(const Hyperparameters& hyperparameters, int64_t step) {
  static_assert(sizeof(Rule) % sizeof(float) == 0, "a rule has constants only");
  const Rule rule(hyperparameters, step);
  std::vector<float> constants(sizeof(Rule) / sizeof(float));
  memcpy(constants.data(), &rule, sizeof(Rule));
  return constants;
}

}  // namespace

std::vector<float> rule_constants(OptimizerRule rule, const Hyperparameters& h, int64_t step) {
  switch (rule) {
    case OptimizerRule::kAdam: return constants_of<Adam>(h, step);
    case OptimizerRule::kMomentum: return constants_of<Momentum<false>>(h, step);
    case OptimizerRule::kNesterov: return constants_of<Momentum<true>>(h, step);
    case OptimizerRule::kRMSprop: return constants_of<RMSprop>(h, step);
    case OptimizerRule::kAdagrad: return constants_of<Adagrad>(h, step);
    case OptimizerRule::kLion: return constants_of<Lion>(h, step);
    case OptimizerRule::kAdEMAMix: return constants_of<AdEMAMix>(h, step);
  }
  throw std::logic_error("no optimizer has this rule");
}

void read_quantiles(const int64_t* counts, int64_t n, double offset, int64_t num_quantiles,
                    bool exact, float* out) {
  const bool nan = counts[place_of(kNanPattern)] > 0;
  int place = 0;
  int64_t below = 0;  // values before the place
  for (int64_t q = 0; q < num_quantiles; ++q) {
    const double rank = rank_of(q, num_quantiles, offset, n);
    while (place < kPatterns - 1 && static_cast<double>(below + counts[place]) <= rank) {
      below += counts[place++];
    }
    const double t = (rank - static_cast<double>(below)) / static_cast<double>(counts[place]);
    out[q] = nan ? NAN : value_within(pattern_at(place), t, exact);
  }
}

}  // namespace bnbx::metal_host
