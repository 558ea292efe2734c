// Files that keep what a compiler has made, for the next process.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace bnbx::cache {

// $BNBX_SYCL_CACHE, or bnbx/sycl in the user's folder for such files; empty if there is none, or if
// the variable is set to nothing: then nothing is kept.
std::string folder();

// What was kept for this key; nothing if it was not, or if the file is damaged or another key's.
std::optional<std::vector<char>> read(const std::string& folder, const std::string& key);

// Keeps it, as a whole or not at all, whoever else writes it at the same time. A folder that cannot
// be written costs time in the next process, and is no error.
void write(const std::string& folder, const std::string& key, const std::vector<char>& bytes);

}  // namespace bnbx::cache
