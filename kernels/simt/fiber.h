// Stacks between which the emulator switches: one for each thread of a block that has to wait.
#pragma once

#include <cstddef>

namespace bnbx::simt {

class Fiber {
 public:
  // The stack of whoever calls; other fibers can switch back to it.
  Fiber() = default;
  // A stack of its own, on which `work`, which never returns, begins with the first switch.
  explicit Fiber(void (*work)());
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // Leaves this fiber, which is running, for another one; returns when one switches back.
  void switch_to(Fiber& other);

 private:
  static void begin();

  void (*work_)() = nullptr;
  void* mapping_ = nullptr;        // a guard page, then the stack
  void* stack_pointer_ = nullptr;  // while it is left
  // What AddressSanitizer wants to know of a stack.
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace bnbx::simt
