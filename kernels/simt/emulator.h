// Runs the threads of one block after another, on the OS thread that launches. A thread runs until
// it has to wait for others; which one runs next is chosen to make a missing barrier show itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace bnbx::simt {

inline constexpr int kLanes = 32;  // of a group, as in device.h
inline constexpr int kMaxThreads = 1024;
inline constexpr int64_t kMaxDynamicShared = 227 << 10;  // of an H100

// How kernels are run.
struct Way {
  // The first thread that can run is the next: a group runs as far ahead of the others as it can.
  // Descending: the last. Shuffled: any.
  enum class Order { kAscending, kDescending, kShuffled };

  const char* name;
  int wave;  // lanes that go from one operation of their group to the next in step
  Order order;
  bool early_copies;      // asynchronous copies are done at once, not when they are waited for
  unsigned char garbage;  // what shared memory holds when a block begins
};

const std::vector<Way>& ways();
const Way& way();
void use(const Way& way);

// A line of a kernel at which threads wait.
struct Place {
  const char* operation = nullptr;
  const char* file = nullptr;
  int line = 0;

  bool operator==(const Place& other) const {
    return operation == other.operation && file == other.file && line == other.line;
  }
};

// Work of a group, when all its lanes have come with their operands.
using Together = void (*)(void* const* operands);

struct Shape {
  uint32_t x, y, z;
};

// An asynchronous copy that has been begun.
struct Copy {
  void* to;
  unsigned char bytes[16];
  int64_t batch;
};

struct Copies {
  std::vector<Copy> pending;
  int64_t batch = 0;  // the one that is being made
};

// Runs a kernel; `thread` calls it with its arguments. Throws std::runtime_error if threads wait
// for each other for ever, or for what a thread throws.
void run(Shape blocks, int threads, int64_t shared_bytes, const std::function<void()>& thread);

// What the words of the language and of device.h are made of, for the thread that is running.
void wait_for_block(Place place);
void meet_group(Place place, void* operands, Together together);
int lane();
void* shared_memory();
Copies& copies();
[[noreturn]] void fail(Place place, const std::string& what);
void check_aligned(Place place, const void* pointer);  // to 16 bytes

}  // namespace bnbx::simt
