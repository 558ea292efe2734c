#include "cuda/optimizer_update.h"

namespace bnbx {

void optimizer_update_blockwise(OptimizerRule rule, int bits, const ParameterUpdate* parameters,
                                int64_t count, const float* qmap1, const float* qmap2,
                                const Hyperparameters& hyperparameters, Stream stream) {
  if (bits == 8) {
    return gpu::update<gpu::CodedStates<8>>(rule, parameters, count, qmap1, qmap2, hyperparameters,
                                            stream);
  }
  gpu::update<gpu::CodedStates<4>>(rule, parameters, count, qmap1, qmap2, hyperparameters, stream);
}

}  // namespace bnbx
