#include "sycl/cache_file.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

namespace bnbx::cache {

// A file: this, the sizes and the checksum, the key, the bytes.
struct Header {
  char magic[8] = {'b', 'n', 'b', 'x', 'k', 'e', 'r', '1'};
  uint64_t key_size = 0, size = 0, checksum = 0;
};

// 64-bit FNV-1a.
static uint64_t checksum_of(const char* bytes, size_t size, uint64_t sum = 0xcbf29ce484222325u) {
  for (size_t i = 0; i < size; ++i) {
    sum = (sum ^ static_cast<unsigned char>(bytes[i])) * 0x100000001b3u;
  }
  return sum;
}

static std::filesystem::path file_of(const std::string& folder, const std::string& key) {
  char name[17];
  snprintf(name, sizeof(name), "%016llx",
           static_cast<unsigned long long>(checksum_of(key.data(), key.size())));
  return std::filesystem::path(folder) / name;
}

std::string folder() {
  if (const char* own = std::getenv("BNBX_SYCL_CACHE")) return own;
  if (const char* all = std::getenv("XDG_CACHE_HOME"); all != nullptr && *all != '\0') {
    return std::filesystem::path(all) / "bnbx" / "sycl";
  }
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home == '\0') return "";
  return std::filesystem::path(home) / ".cache" / "bnbx" / "sycl";
}

std::optional<std::vector<char>> read(const std::string& folder, const std::string& key) {
  if (folder.empty()) return std::nullopt;
  std::ifstream file(file_of(folder, key), std::ios::binary);
  const std::vector<char> all{std::istreambuf_iterator<char>(file), {}};
  Header header, expected;
  if (all.size() < sizeof(header)) return std::nullopt;
  std::memcpy(&header, all.data(), sizeof(header));
  const char* content = all.data() + sizeof(header);
  const size_t content_size = all.size() - sizeof(header);
  if (std::memcmp(header.magic, expected.magic, sizeof(header.magic)) != 0 ||
      header.key_size != key.size() || header.size > content_size ||
      header.key_size + header.size != content_size ||
      std::memcmp(content, key.data(), key.size()) != 0 ||
      checksum_of(content, content_size) != header.checksum) {
    return std::nullopt;
  }
  return std::vector<char>(content + key.size(), content + content_size);
}

void write(const std::string& folder, const std::string& key, const std::vector<char>& bytes) {
  if (folder.empty()) return;
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  Header header;
  header.key_size = key.size();
  header.size = bytes.size();
  header.checksum = checksum_of(bytes.data(), bytes.size(), checksum_of(key.data(), key.size()));
  const auto path = file_of(folder, key);
  auto unfinished = path;
  unfinished += "." + std::to_string(std::random_device{}());
  std::ofstream file(unfinished, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&header), sizeof(header));
  file.write(key.data(), static_cast<std::streamsize>(key.size()));
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (file.good()) std::filesystem::rename(unfinished, path, failed);
  if (!file.good() || failed) std::filesystem::remove(unfinished, failed);
}

}  // namespace bnbx::cache
