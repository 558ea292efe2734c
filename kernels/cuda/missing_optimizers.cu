// Operations whose kernels are not written yet. Delete each as it gets its own file.
#include <stdexcept>

#include "bnbx/kernels.h"

namespace bnbx {

void optimizer_update_32bit(OptimizerRule, const ParameterUpdate*, int64_t, const Hyperparameters&,
                            Stream) {
  throw std::logic_error("optimizer_update_32bit is missing");
}

void optimizer_update_blockwise(OptimizerRule, int, const ParameterUpdate*, int64_t, const float*,
                                const float*, const Hyperparameters&, Stream) {
  throw std::logic_error("optimizer_update_blockwise is missing");
}

}  // namespace bnbx
