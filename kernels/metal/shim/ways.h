// The ways of the emulator to run a kernel, in the place of instruction sets.
#pragma once

#include <string>
#include <vector>

namespace bnbx::metal_shim {

std::string way();
std::vector<std::string> ways();
void select_way(const std::string& name);  // throws std::invalid_argument for other names

}  // namespace bnbx::metal_shim
