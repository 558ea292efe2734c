// The words of kernels/cuda/device.h and of the language, as the emulator has them.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "cuda/device.h"
#include "cuda/mma_by_shuffles.h"

namespace bnbx::test {
namespace {

using namespace bnbx::gpu;

std::vector<int> numbers(int64_t n) {
  std::vector<int> out(n);
  std::iota(out.begin(), out.end(), 1);
  return out;
}

__global__ void reverse_blocks(const int* from, int* to) {
  __shared__ int tile[1024];
  const int64_t first = int64_t{blockIdx.x} * blockDim.x;
  tile[threadIdx.x] = from[first + threadIdx.x];
  __syncthreads();
  to[first + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

void test_barrier(int threads, int blocks) {
  const std::vector<int> from = numbers(threads * blocks);
  std::vector<int> to(from.size());
  launch(reverse_blocks, blocks, threads, 0, nullptr, from.data(), to.data());
  for (int b = 0; b < blocks; ++b) std::reverse(&to[b * threads], &to[b * threads] + threads);
  CHECK(to == from);
}

__global__ void count_visits(int* visits) {
  const uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  ++visits[block * blockDim.x + threadIdx.x];
}

void test_every_thread_runs_once() {
  std::vector<int> visits(3 * 5 * 2 * 40);
  launch(count_visits, {3, 5, 2}, 40, 0, nullptr, visits.data());
  CHECK(visits == std::vector<int>(visits.size(), 1));
}

template <class T>
__global__ void read_what_nobody_wrote(T* dynamic_found, T* static_found) {
  __shared__ T fixed;
  T* dynamic = dynamic_shared<T>();
  dynamic_found[blockIdx.x] = *dynamic;
  static_found[blockIdx.x] = fixed;
  *dynamic = fixed = 7;
}

void test_shared_memory_begins_as_garbage() {
  for (int round = 0; round < 2; ++round) {
    int from_dynamic[3], from_static[3];
    launch(read_what_nobody_wrote<int>, 3, 1, sizeof(int), nullptr, &from_dynamic[0],
           &from_static[0]);
    for (int x : from_dynamic) CHECK(x != 0 && x != 7);
#ifndef BNBX_ASAN  // which needs arrays where they are not found to be filled
    // Static arrays get it once for a launch.
    CHECK(std::count(from_static, from_static + 3, 7) == 2);
    CHECK(std::count(from_static, from_static + 3, 0) == 0);
#endif
  }
}

template <class T>
__global__ void shuffle_lanes(const T* from, T* to, T* crossed) {
  const int lane = static_cast<int>(threadIdx.x) % kGroup;
  to[threadIdx.x] = shuffle(from[threadIdx.x], (7 * lane + 3) % kGroup);
  crossed[threadIdx.x] = shuffle_xor(from[threadIdx.x], 5);
}

template <class T>
void test_shuffles() {
  constexpr int kThreads = 96;
  std::vector<T> from(kThreads), to(kThreads), crossed(kThreads);
  std::iota(from.begin(), from.end(), T{1});
  launch(shuffle_lanes<T>, 1, kThreads, 0, nullptr, from.data(), to.data(), crossed.data());
  for (int i = 0; i < kThreads; ++i) {
    const int group = i / 32 * 32, lane = i % 32;
    CHECK(to[i] == from[group + (7 * lane + 3) % 32]);
    CHECK(crossed[i] == from[group + (lane ^ 5)]);
  }
}

__global__ void reduce_groups(float* sums, float* maxima, int* found) {
  const float x = static_cast<float>(threadIdx.x);
  sums[threadIdx.x] = group_sum(x);
  maxima[threadIdx.x] = group_max(-x);
  found[threadIdx.x] = any(threadIdx.x == 40) ? 1 : 0;
}

void test_reductions() {
  float sums[96], maxima[96];
  int found[96];
  launch(reduce_groups, 1, 96, 0, nullptr, &sums[0], &maxima[0], &found[0]);
  for (int i = 0; i < 96; ++i) {
    const int first = i / 32 * 32;
    CHECK(sums[i] == static_cast<float>(32 * first + 31 * 16));
    CHECK(maxima[i] == static_cast<float>(-first));
    CHECK(found[i] == (first == 32 ? 1 : 0));
  }
}

// Groups do together what others, perhaps of the same wave, do not: each another number of times.
__global__ void reduce_some_groups(int* to) {
  const int group = static_cast<int>(threadIdx.x) / kGroup;
  int sum = 0, lanes = 0;
  for (int i = 0; i < group; ++i) {
    sum += group_sum(1);
    lanes += any(threadIdx.x % kGroup == 7) ? kGroup : 0;
  }
  if (group % 2 == 1) sum += shuffle(static_cast<int>(threadIdx.x), 3);
  to[threadIdx.x] = sum == lanes + (group % 2 == 1 ? kGroup * group + 3 : 0) ? sum : -1;
}

void test_groups_apart() {
  int to[128];
  launch(reduce_some_groups, 1, 128, 0, nullptr, &to[0]);
  for (int i = 0; i < 128; ++i) {
    const int group = i / 32;
    CHECK(to[i] == 32 * group + (group % 2 == 1 ? 32 * group + 3 : 0));
  }
}

__global__ void exchange_in_group(int* to) {
  __shared__ int tile[64];
  tile[threadIdx.x] = static_cast<int>(threadIdx.x);
  sync_group();
  to[threadIdx.x] = tile[threadIdx.x ^ 31];
}

void test_sync_group() {
  int to[64];
  launch(exchange_in_group, 1, 64, 0, nullptr, &to[0]);
  for (int i = 0; i < 64; ++i) CHECK(to[i] == (i ^ 31));
}

struct Totals {
  int sum = 0, swapped = 0, largest = 0, smallest = 1000;
  unsigned bits = 0;
  unsigned long long wide = 0;
  float real = 0.0f;
};

__global__ void gather_totals(Totals* totals) {
  const int x = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) + 1;
  atomicAdd(&totals->sum, x);
  atomicAdd(&totals->wide, 1ull << 40);
  atomicAdd(&totals->real, 0.5f);
  atomicMax(&totals->largest, x);
  atomicMin(&totals->smallest, x);
  atomicOr(&totals->bits, 1u << x % 32);
  if (atomicCAS(&totals->swapped, x - 1, x) == 17) atomicExch(&totals->swapped, -1);
}

void test_atomics() {
  Totals totals;
  launch(gather_totals, 4, 32, 0, nullptr, &totals);
  CHECK(totals.sum == 128 * 129 / 2 && totals.wide == 128ull << 40 && totals.real == 64.0f);
  CHECK(totals.largest == 128 && totals.smallest == 1 && totals.bits == 0xffffffffu);
  // Threads that come in ascending order count up to 18; the 18th of them finds 17.
  const bool ascending = isa() == "warp32" || isa() == "warp64";
  CHECK(!ascending || totals.swapped == -1);
}

template <class T>
T small_number() {
  return rounded<T>(static_cast<float>(random_below(17) - 8));
}
template <>
int8_t small_number() {
  return static_cast<int8_t>(random_below(256));
}

int32_t number(int8_t x) { return x; }
using test::number;

template <class Sum>
void multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int8_t) {
  mma(d, a, b);
}
template <class Sum, class T>
void multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T type) {
  mma(d, a, b, type);
}

// Each lane has its registers side by side.
template <class Sum, class T>
__global__ void multiply_fragments(const uint32_t* a, const uint32_t* b, Sum* direct,
                                   Sum* by_shuffles) {
  const uint32_t (&own_a)[4] = *reinterpret_cast<const uint32_t (*)[4]>(a + 4 * threadIdx.x);
  const uint32_t (&own_b)[2] = *reinterpret_cast<const uint32_t (*)[2]>(b + 2 * threadIdx.x);
  multiply(*reinterpret_cast<Sum(*)[4]>(direct + 4 * threadIdx.x), own_a, own_b, T{});
  mma_by_shuffles(*reinterpret_cast<Sum(*)[4]>(by_shuffles + 4 * threadIdx.x), own_a, own_b, T{});
}

// Whole numbers, whose sums are exact in any order.
template <class Sum, class T>
void test_mma() {
  constexpr int kPart = 4 / sizeof(T);  // elements of a register
  constexpr int kDepth = 8 * kPart;
  T a[16][kDepth], b[kDepth][8];
  Sum expected[16][8];
  for (auto& row : a) std::generate(row, row + kDepth, small_number<T>);
  for (auto& row : b) std::generate(row, row + 8, small_number<T>);
  // Where an element lies: its lane and, counted in elements, its place in the lane's registers.
  std::vector<T> dealt_a(16 * kDepth), dealt_b(8 * kDepth);
  std::vector<Sum> direct(16 * 8), by_shuffles;
  const auto d_at = [](int row, int column) {
    return (row % 8 * 4 + column / 2) * 4 + row / 8 * 2 + column % 2;
  };
  for (int k = 0; k < kDepth; ++k) {
    const int half = k / (kDepth / 2), lane = k % (kDepth / 2) / kPart, part = k % kPart;
    for (int row = 0; row < 16; ++row) {
      dealt_a[((row % 8 * 4 + lane) * 4 + 2 * half + row / 8) * kPart + part] = a[row][k];
    }
    for (int column = 0; column < 8; ++column) {
      dealt_b[((column * 4 + lane) * 2 + half) * kPart + part] = b[k][column];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      expected[row][column] = static_cast<Sum>(row - column);
      direct[d_at(row, column)] = expected[row][column];
      for (int k = 0; k < kDepth; ++k) {
        expected[row][column] += static_cast<Sum>(number(a[row][k]) * number(b[k][column]));
      }
    }
  }
  by_shuffles = direct;
  launch(multiply_fragments<Sum, T>, 1, 32, 0, nullptr,
         reinterpret_cast<const uint32_t*>(dealt_a.data()),
         reinterpret_cast<const uint32_t*>(dealt_b.data()), direct.data(), by_shuffles.data());
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      CHECK(direct[d_at(row, column)] == expected[row][column]);
      CHECK(by_shuffles[d_at(row, column)] == expected[row][column]);
    }
  }
}

__global__ void load_and_multiply(const uint32_t* from, uint32_t* to, int32_t* sums) {
  uint32_t* tile = dynamic_shared<uint32_t>();
  for (int i = 0; i < 4; ++i) tile[4 * threadIdx.x + i] = from[4 * threadIdx.x + i];
  sync_group();
  uint32_t words[4];
  load_matrices(words, tile + 4 * threadIdx.x);
  for (int i = 0; i < 4; ++i) to[4 * threadIdx.x + i] = words[i];
  sums[threadIdx.x] = dot4(words[0], words[1], -7);
}

void test_matrices_and_dot4() {
  uint32_t from[128], to[128];
  int32_t sums[32];
  for (uint32_t& x : from) x = static_cast<uint32_t>(random_below(int64_t{1} << 32));
  launch(load_and_multiply, 1, 32, sizeof(from), nullptr, &from[0], &to[0], &sums[0]);
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      CHECK(to[4 * lane + matrix] == from[(8 * matrix + lane / 4) * 4 + lane % 4]);
    }
    int32_t sum = -7;
    for (int shift = 0; shift < 32; shift += 8) {
      sum += static_cast<int8_t>(to[4 * lane] >> shift) *
             static_cast<int8_t>(to[4 * lane + 1] >> shift);
    }
    CHECK(sums[lane] == sum);
  }
}

constexpr int kStages = 3;

// Copies through a ring of stages, each of 16 bytes for a thread, and adds one to every number.
__global__ void copy_in_stages(const int* from, int* to, int rounds) {
  int* ring = dynamic_shared<int>();
  const int stage = 4 * static_cast<int>(blockDim.x), own = 4 * static_cast<int>(threadIdx.x);
  const auto begin_copy = [&](int round) {
    if (round < rounds)
      copy_async_16(ring + round % kStages * stage + own, from + round * stage + own);
    commit_copies();
  };
  for (int round = 0; round < kStages - 1; ++round) begin_copy(round);
  for (int round = 0; round < rounds; ++round) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    begin_copy(round + kStages - 1);
    // What another thread has copied.
    const int other = stage - 4 - own;
    for (int i = 0; i < 4; ++i)
      to[round * stage + own + i] = ring[round % kStages * stage + other + i] + 1;
  }
}

void test_copies() {
  constexpr int kThreads = 64, kRounds = 7, kStage = 4 * kThreads;
  const std::vector<int> from = numbers(kRounds * kStage);
  std::vector<int> to(from.size());
  launch(copy_in_stages, 1, kThreads, kStages * kStage * sizeof(int), nullptr, from.data(),
         to.data(), kRounds);
  for (int i = 0; i < kRounds * kStage; ++i) {
    const int other = kStage - 4 - i % kStage / 4 * 4 + i % 4;
    CHECK(to[i] == from[i / kStage * kStage + other] + 1);
  }
}

__global__ void load_and_store(const float16* from, float16* to) {
  const Vector<float16, 8> eight = load_vector<float16, 8>(from + 8 * threadIdx.x);
  store_vector(to + 8 * threadIdx.x, eight);
}

void test_vectors() {
  alignas(16) float16 from[256], to[256] = {};
  for (int i = 0; i < 256; ++i) from[i].bits = static_cast<uint16_t>(257 * i);
  launch(load_and_store, 1, 32, 0, nullptr, &from[0], &to[0]);
  CHECK(std::equal(from, from + 256, to, [](float16 x, float16 y) { return x.bits == y.bits; }));
}

void test_words() {
  for (int threads : {1, 31, 32, 33, 96, 1024}) test_barrier(threads, 3);
  test_every_thread_runs_once();
  test_shared_memory_begins_as_garbage();
  test_shuffles<int>();
  test_shuffles<float>();
  test_shuffles<int64_t>();
  test_reductions();
  test_groups_apart();
  test_sync_group();
  test_atomics();
  test_mma<float, float16>();
  test_mma<float, bfloat16>();
  test_mma<int32_t, int8_t>();
  test_matrices_and_dot4();
  test_copies();
  test_vectors();
}

}  // namespace
}  // namespace bnbx::test

int main() {
  bnbx::test::for_each_isa(bnbx::test::test_words);
  return bnbx::test::result();
}
