#include "simt/shared.h"

#include <link.h>

#include <cstring>

#include "simt/asan.h"

namespace bnbx::simt {
namespace {

#ifdef BNBX_ASAN
void fill_static(unsigned char) {}
#else
// Static shared arrays are thread-local (language.h): the linker puts all of a module together.
// Nothing else may be thread-local there, which is why the C library must not be linked statically.
struct Arrays {
  unsigned char* inside;  // an address among them
  unsigned char* begin;
  size_t size;
};

int find(dl_phdr_info* module, size_t, void* data) {
  Arrays* found = static_cast<Arrays*>(data);
  for (int i = 0; i < module->dlpi_phnum; ++i) {
    const auto& segment = module->dlpi_phdr[i];
    if (segment.p_type != PT_TLS || module->dlpi_tls_data == nullptr) continue;
    unsigned char* begin = static_cast<unsigned char*>(module->dlpi_tls_data);
    if (found->inside < begin || found->inside >= begin + segment.p_memsz) continue;
    found->begin = begin + segment.p_filesz;  // first what has initial values: no shared array
    found->size = segment.p_memsz - segment.p_filesz;
    return 1;
  }
  return 0;
}

void fill_static(unsigned char garbage) {
  static thread_local volatile unsigned char inside;
  inside = garbage;  // memory for thread-local variables comes with the first access
  Arrays arrays{const_cast<unsigned char*>(&inside), nullptr, 0};
  if (dl_iterate_phdr(&find, &arrays) != 0) memset(arrays.begin, garbage, arrays.size);
}
#endif

}  // namespace

SharedMemory::SharedMemory(int64_t dynamic_bytes, unsigned char garbage)
    : dynamic_(new unsigned char[dynamic_bytes]), bytes_(dynamic_bytes), garbage_(garbage) {
  fill_static(garbage);
}

void SharedMemory::renew() { memset(dynamic_.get(), garbage_, bytes_); }

}  // namespace bnbx::simt
