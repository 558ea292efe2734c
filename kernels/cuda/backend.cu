// What the backend says about itself.
#include <stdexcept>

#include "common/operations.h"
#include "cuda/device.h"

namespace bnbx {

std::vector<std::string> operations() { return every_operation(); }

std::string isa() { return gpu::toolkit(); }

std::vector<std::string> available_isas() { return {isa()}; }

void select_isa(const std::string& name) {
  if (name != isa()) throw std::invalid_argument("this module is for " + isa() + ", got " + name);
}

}  // namespace bnbx
