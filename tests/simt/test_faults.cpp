// Mistakes in kernels, which the emulator must find: by a wrong result in one of its ways to run
// them, or by an exception.
#include <algorithm>
#include <stdexcept>

#include "check.h"
#include "cuda/device.h"

namespace bnbx::test {
namespace {

using namespace bnbx::gpu;

constexpr int kThreads = 128;

// Each kernel below is right, or lacks what its name says.
enum class Fault { kNone, kFirst, kSecond, kThird };

using Reverse = void (*)(const int* from, int* to, int rounds);

// Whether a kernel turns round every 128 numbers, in each of the ways to run it.
bool is_right_in_all_ways(Reverse kernel) {
  bool right = true;
  for_each_isa([&] {
    constexpr int kRounds = 3;
    std::vector<int> from(kThreads * kRounds), to(from.size());
    for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<int>(i);
    launch(kernel, 1, kThreads, 4 * kThreads * sizeof(int), nullptr, from.data(), to.data(),
           kRounds);
    for (size_t i = 0; i < to.size(); ++i) {
      const size_t round = i / kThreads;
      right &= to[i] == from[round * kThreads + kThreads - 1 - i % kThreads];
    }
  });
  return right;
}

// Lacks the barrier after writing, or the one before writing again.
template <Fault kFault>
__global__ void reverse(const int* from, int* to, int rounds) {
  __shared__ int tile[kThreads];
  for (int round = 0; round < rounds; ++round) {
    tile[threadIdx.x] = from[round * kThreads + threadIdx.x];
    if (kFault != Fault::kFirst) __syncthreads();
    to[round * kThreads + threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
    if (kFault != Fault::kSecond) __syncthreads();
  }
}

// The same within groups of lanes.
template <Fault kFault>
__global__ void reverse_by_groups(const int* from, int* to, int rounds) {
  __shared__ int tile[kThreads];
  const int other = threadIdx.x ^ (kGroup - 1);
  for (int round = 0; round < rounds; ++round) {
    // The other groups' numbers take the way through memory that is not shared.
    tile[threadIdx.x] = from[round * kThreads + kThreads - 1 - other];
    if (kFault != Fault::kFirst) sync_group();
    to[round * kThreads + threadIdx.x] = tile[other];
    if (kFault != Fault::kSecond) sync_group();
  }
}

// Copies one round ahead, into the one of two buffers that has been read. Lacks the wait, the
// barrier after it, or the one before the buffer is copied into again.
template <Fault kFault>
__global__ void reverse_copies(const int* from, int* to, int rounds) {
  int* buffers = dynamic_shared<int>();
  const auto begin_copy = [&](int round) {
    if (round < rounds && threadIdx.x < kThreads / 4) {
      copy_async_16(buffers + round % 2 * kThreads + 4 * threadIdx.x,
                    from + round * kThreads + 4 * threadIdx.x);
    }
    commit_copies();
  };
  begin_copy(0);
  for (int round = 0; round < rounds; ++round) {
    begin_copy(round + 1);
    wait_for_copies<kFault == Fault::kFirst ? 2 : 1>();
    if (kFault != Fault::kSecond) __syncthreads();
    to[round * kThreads + threadIdx.x] = buffers[round % 2 * kThreads + kThreads - 1 - threadIdx.x];
    if (kFault != Fault::kThird) __syncthreads();
  }
  wait_for_copies<0>();
}

void test_missing_waits() {
  CHECK(is_right_in_all_ways(reverse<Fault::kNone>));
  CHECK(!is_right_in_all_ways(reverse<Fault::kFirst>));
  CHECK(!is_right_in_all_ways(reverse<Fault::kSecond>));
  CHECK(is_right_in_all_ways(reverse_by_groups<Fault::kNone>));
  CHECK(!is_right_in_all_ways(reverse_by_groups<Fault::kFirst>));
  CHECK(!is_right_in_all_ways(reverse_by_groups<Fault::kSecond>));
  CHECK(is_right_in_all_ways(reverse_copies<Fault::kNone>));
  CHECK(!is_right_in_all_ways(reverse_copies<Fault::kFirst>));
  CHECK(!is_right_in_all_ways(reverse_copies<Fault::kSecond>));
  CHECK(!is_right_in_all_ways(reverse_copies<Fault::kThird>));
}

// Whether a kernel fails in each of the ways with a message that has these words.
bool fails_with(void (*kernel)(int*), const std::vector<std::string>& words, int threads = 64) {
  bool found = true;
  for_each_isa([&] {
    alignas(16) int memory[64] = {};
    std::string message;
    try {
      launch(kernel, 1, threads, 1024, nullptr, &memory[0]);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    for (const std::string& word : words) {
      if (message.find(word) != std::string::npos) continue;
      std::printf("'%s' is not in '%s'\n", word.c_str(), message.c_str());
      found = false;
    }
  });
  return found;
}

__global__ void end_early(int* to) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  to[threadIdx.x] = 1;
}

__global__ void two_barriers(int* to) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  to[threadIdx.x] = 1;
}

__global__ void shuffle_in_branch(int* to) {
  if (threadIdx.x % 2 == 0) to[threadIdx.x] = shuffle(7, 0);
}

__global__ void shuffle_in_two_branches(int* to) {
  if (threadIdx.x % 2 == 0) {
    to[threadIdx.x] = shuffle(7, 0);
  } else {
    to[threadIdx.x] = shuffle(8, 0);
  }
}

__global__ void barrier_beside_shuffle(int* to) {
  if (threadIdx.x < 16) {
    to[threadIdx.x] = shuffle(7, 0);
  } else {
    __syncthreads();
  }
}

__global__ void shuffle_from_nowhere(int* to) { to[threadIdx.x] = shuffle(7, 32); }

__global__ void copy_to_odd_address(int* to) { copy_async_16(dynamic_shared<int>() + 1, to); }

__global__ void copy_without_wait(int* to) {
  copy_async_16(dynamic_shared<int>(), to);
  commit_copies();
}

void test_waits_without_end() {
  CHECK(fails_with(end_early, {"block (0, 0, 0) of 64 threads", "63 from thread 0 on",
                               "__syncthreads (", "test_faults.cpp:", "1 from thread 5 on"}));
  CHECK(fails_with(two_barriers, {"32 from thread 0 on wait at __syncthreads",
                                  "32 from thread 32 on wait at __syncthreads"}));
  CHECK(fails_with(shuffle_in_branch,
                   {"32 from thread 0 on wait at shuffle", "32 from thread 1 on have ended"}));
  CHECK(fails_with(shuffle_in_two_branches,
                   {"32 from thread 0 on wait at shuffle", "32 from thread 1 on wait at shuffle"}));
  CHECK(fails_with(barrier_beside_shuffle, {"16 from thread 0 on wait at shuffle",
                                            "48 from thread 16 on wait at __syncthreads"}));
  CHECK(fails_with(shuffle_from_nowhere, {"thread", "shuffle (", "from 0 to 31, got 32"}));
  CHECK(fails_with(copy_to_odd_address, {"copy_async_16 (", "aligned to 16 bytes"}));
  CHECK(fails_with(copy_without_wait, {"ended without waiting for its asynchronous copies"}));
}

__global__ void sum_of_group(int* to) { to[threadIdx.x] = group_sum(1); }

void test_parts_of_groups() {
  CHECK(fails_with(sum_of_group, {"48 threads", "16 from thread 32 on wait at shuffle_xor"}, 48));
}

bool is_refused(Blocks blocks, int threads, int64_t shared_bytes) {
  int memory[64] = {};
  try {
    launch(sum_of_group, blocks, threads, shared_bytes, nullptr, &memory[0]);
  } catch (const std::runtime_error& error) {
    return std::string(error.what()).find("launch: expected") == 0;
  }
  return false;
}

void test_launches() {
  CHECK(!is_refused(1, 32, 227 << 10));
  CHECK(is_refused(1, 32, (227 << 10) + 1));
  CHECK(is_refused(1, 32, -1));
  CHECK(is_refused(1, 0, 0));
  CHECK(is_refused(1, 1056, 0));
  CHECK(is_refused(0, 32, 0));
  CHECK(is_refused(0x80000000u, 32, 0));
  CHECK(is_refused({1, 65536, 1}, 32, 0));
  CHECK(is_refused({1, 1, 65536}, 32, 0));
}

// Counts the objects that live on the stacks of threads.
struct Counted {
  explicit Counted(int* count) : count(count) { ++*count; }
  ~Counted() { --*count; }
  int* count;
};

__global__ void fail_with_objects(int* count) {
  const Counted object(count);
  __syncthreads();
  if (threadIdx.x == 40) shuffle(1, -1);
  __syncthreads();
}

// The threads that wait when one fails are unwound, and the next launch finds all in order.
void test_after_a_failure() {
  for_each_isa([&] {
    int count = 0;
    bool failed = false;
    try {
      launch(fail_with_objects, 1, 64, 0, nullptr, &count);
    } catch (const std::runtime_error&) {
      failed = true;
    }
    CHECK(failed && count == 0);
    int sums[64];
    launch(sum_of_group, 1, 64, 0, nullptr, &sums[0]);
    CHECK(std::count(sums, sums + 64, 32) == 64);
  });
}

}  // namespace
}  // namespace bnbx::test

int main() {
  using namespace bnbx::test;
  test_missing_waits();
  test_waits_without_end();
  test_parts_of_groups();
  test_launches();
  test_after_a_failure();
  return result();
}
