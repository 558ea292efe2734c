#include "metal/shim/ways.h"

#include <stdexcept>

#include "simt/emulator.h"

namespace bnbx::metal_shim {

std::string way() { return simt::way().name; }

std::vector<std::string> ways() {
  std::vector<std::string> names;
  for (const simt::Way& each : simt::ways()) {
    if (each.wave == simt::kLanes) names.emplace_back(each.name);  // no Apple GPU has another
  }
  return names;
}

void select_way(const std::string& name) {
  for (const simt::Way& each : simt::ways()) {
    if (name == each.name && each.wave == simt::kLanes) return simt::use(each);
  }
  throw std::invalid_argument("isa: expected one of the ways of the emulator, got '" + name + "'");
}

}  // namespace bnbx::metal_shim
