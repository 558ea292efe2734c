// Mistakes in kernels that AddressSanitizer and UBSan find. They end the program: each is a run of
// its own, and CMakeLists.txt knows what it must say.
#include <cstring>
#include <memory>

#include "cuda/device.h"

namespace bnbx::test {
namespace {

using namespace bnbx::gpu;

__global__ void overflow(float* memory, bool dynamic, int where) {
  __shared__ float tile[33];
  float* shared = dynamic ? dynamic_shared<float>() : tile;
  shared[threadIdx.x] = memory[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) memory[0] = shared[where];
}

template <class T>
__global__ void overflow_of_template(T* memory, int where) {
  __shared__ T tile[33];
  T* shared = tile;
  shared[threadIdx.x] = memory[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) memory[0] = shared[where];
}

__global__ void copy(const float* memory, int where) {
  copy_async_16(dynamic_shared<float>(), memory + where);
  wait_for_copies<0>();
}

__global__ void load(float* memory, int where) {
  const Vector<float, 4> four = load_vector<float, 4>(memory + where);
  store_vector(memory, four);
}

__global__ void recurse(float* memory, int where) {
  volatile float frame[1024];
  frame[where % 1024] = memory[0];
  if (where > 0) recurse(memory, where - 1);
  memory[0] = frame[where % 1024];
}

void run(const char* fault) {
  const auto is = [&](const char* name) { return std::strcmp(fault, name) == 0; };
  const std::unique_ptr<float[]> memory(new float[32]());
  if (is("global_overflow")) launch(overflow, 1, 33, 33 * 4, nullptr, memory.get(), true, 0);
  if (is("dynamic_overflow")) launch(overflow, 1, 32, 32 * 4, nullptr, memory.get(), true, 32);
  if (is("static_overflow")) launch(overflow, 1, 32, 0, nullptr, memory.get(), false, 33);
  if (is("template_overflow"))
    launch(overflow_of_template<float>, 1, 32, 0, nullptr, memory.get(), 33);
  if (is("copy_overflow")) launch(copy, 1, 1, 16, nullptr, memory.get(), 32);
  if (is("misaligned_vector")) launch(load, 1, 1, 0, nullptr, memory.get(), 1);
  if (is("stack_overflow")) launch(recurse, 1, 1, 0, nullptr, memory.get(), 1000);
}

}  // namespace
}  // namespace bnbx::test

int main(int, char** arguments) {
  bnbx::test::run(arguments[1]);
  return 0;
}
