// What the backend says about itself.
#include <cuda_runtime_api.h>

#include <stdexcept>

#include "bnbx/kernels.h"
#include "common/operations.h"

namespace bnbx {

static std::string toolkit() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

std::vector<std::string> operations() { return every_operation(); }

std::string isa() { return "cuda " + toolkit(); }

std::vector<std::string> available_isas() { return {isa()}; }

void select_isa(const std::string& name) {
  if (name != isa()) throw std::invalid_argument("this module is for " + isa() + ", got " + name);
}

}  // namespace bnbx
