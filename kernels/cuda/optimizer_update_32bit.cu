#include "cuda/optimizer_update.h"

namespace bnbx {

void optimizer_update_32bit(OptimizerRule rule, const ParameterUpdate* parameters, int64_t count,
                            const Hyperparameters& hyperparameters, Stream stream) {
  gpu::update<gpu::FloatStates>(rule, parameters, count, nullptr, nullptr, hyperparameters, stream);
}

}  // namespace bnbx
