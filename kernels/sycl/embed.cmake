# Writes the function that returns the sources of the kernels: cmake -DOUT=... -DROOT=kernels/
# -DFILES=... -P embed.cmake
set(text "#include \"sycl/kernel_cache.h\"\n\nnamespace bnbx::gpu {\n
const std::vector<std::pair<std::string, std::string>>& sources() {
  static const std::vector<std::pair<std::string, std::string>> all = {\n")
foreach(path IN LISTS FILES)
  file(READ "${ROOT}/${path}" content)
  string(APPEND text "{\"${path}\", R\"bnbx_source(${content})bnbx_source\"},\n")
endforeach()
string(APPEND text "  };\n  return all;\n}\n\n}  // namespace bnbx::gpu\n")
file(WRITE "${OUT}" "${text}")
