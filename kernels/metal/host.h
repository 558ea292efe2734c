// What the host computes for the kernels, because it takes double.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bnbx/kernels.h"

namespace bnbx::metal_host {

// The constants of a rule in a step, in the order in which common/optimizers.h has them.
std::vector<float> rule_constants(OptimizerRule rule, const Hyperparameters& hyperparameters,
                                  int64_t step);

// The quantiles of n values of which `counts` have each pattern, by its place (common/quantiles.h);
// `exact` where a pattern is all of a value.
void read_quantiles(const int64_t* counts, int64_t n, double offset, int64_t num_quantiles,
                    bool exact, float* out);

}  // namespace bnbx::metal_host
