// The shared memory of a block.
#pragma once

#include <cstdint>
#include <memory>

namespace bnbx::simt {

class SharedMemory {
 public:
  // For a launch with so many dynamic bytes. Static arrays become garbage.
  SharedMemory(int64_t dynamic_bytes, unsigned char garbage);

  // For a new block. Static arrays keep what the last block has left.
  void renew();

  void* dynamic() { return dynamic_.get(); }

 private:
  // Of exactly this size, so that AddressSanitizer knows its end; new[] aligns to 16 bytes.
  std::unique_ptr<unsigned char[]> dynamic_;
  int64_t bytes_;
  unsigned char garbage_;
};

}  // namespace bnbx::simt
