// What the backend says about itself. The ways to run kernels take the place of instruction sets.
#include <stdexcept>

#include "bnbx/kernels.h"
#include "common/operations.h"
#include "simt/emulator.h"

namespace bnbx {

std::vector<std::string> operations() { return every_operation(); }

std::string isa() { return simt::way().name; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const simt::Way& way : simt::ways()) names.emplace_back(way.name);
  return names;
}

void select_isa(const std::string& name) {
  for (const simt::Way& way : simt::ways()) {
    if (name == way.name) return simt::use(way);
  }
  std::string names;
  for (const std::string& known : available_isas()) names += (names.empty() ? "" : ", ") + known;
  throw std::invalid_argument("isa: expected one of " + names + " (what this machine has), got '" +
                              name + "'");
}

}  // namespace bnbx
