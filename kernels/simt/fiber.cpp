#include "simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#include "simt/asan.h"
#ifdef BNBX_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the registers that a function must keep, and the stack pointer at *from; then takes those
// of the other stack. No system call, unlike swapcontext.
extern "C" void bnbx_simt_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
  .text
  .globl bnbx_simt_switch
  .hidden bnbx_simt_switch
  .type bnbx_simt_switch, @function
bnbx_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size bnbx_simt_switch, . - bnbx_simt_switch
)");
static constexpr int kSaved = 8;   // words: six registers, the return address, one to align
static constexpr int kReturn = 6;  // the return address among them
#elif defined(__aarch64__)
asm(R"(
  .text
  .globl bnbx_simt_switch
  .hidden bnbx_simt_switch
  .type bnbx_simt_switch, %function
bnbx_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size bnbx_simt_switch, . - bnbx_simt_switch
)");
static constexpr int kSaved = 20;
static constexpr int kReturn = 11;  // x30
#else
#error "the emulator knows how to switch stacks on x86-64 and on 64-bit Arm"
#endif

namespace bnbx::simt {
namespace {

// Sanitizers make frames large.
constexpr size_t kStackBytes = 256 << 10;

// Those of the switch under way.
Fiber* left = nullptr;
Fiber* entered = nullptr;

}  // namespace

Fiber::Fiber(void (*work)()) : work_(work), size_(kStackBytes) {
  const size_t page = sysconf(_SC_PAGESIZE);
  mapping_ = mmap(nullptr, page + size_, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, page, PROT_NONE);  // an overflow ends the program here
  bottom_ = static_cast<char*>(mapping_) + page;
  void** top = reinterpret_cast<void**>(static_cast<char*>(mapping_) + page + size_);
  stack_pointer_ = top - kSaved;
  top[kReturn - kSaved] = reinterpret_cast<void*>(&Fiber::begin);
}

Fiber::~Fiber() {
  if (mapping_ != nullptr) munmap(mapping_, sysconf(_SC_PAGESIZE) + size_);
}

// AddressSanitizer learns where the stack that was left lies, which for the first is news.
static void arrive(void* fake_stack, const void** bottom, size_t* size) {
#ifdef BNBX_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
#else
  (void)fake_stack, (void)bottom, (void)size;
#endif
}

void Fiber::begin() {
  arrive(nullptr, &left->bottom_, &left->size_);
  entered->work_();
}

void Fiber::switch_to(Fiber& other) {
  left = this;
  entered = &other;
#ifdef BNBX_ASAN
  __sanitizer_start_switch_fiber(&fake_stack_, other.bottom_, other.size_);
#endif
  bnbx_simt_switch(&stack_pointer_, other.stack_pointer_);
  arrive(fake_stack_, &left->bottom_, &left->size_);
}

}  // namespace bnbx::simt
