// A fiber: a call that can be left in the middle and resumed there. One stands for one CUDA thread.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <new>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#error "tests/cuda_on_cpu switches stacks in x86-64 assembly; write cuda_on_cpu_switch_stack for this processor"
#endif

// Saves the callee-saved registers on this stack and its pointer in *from, then goes on where `to` was saved.
extern "C" void cuda_on_cpu_switch_stack(void** from, void* to);
asm(R"(
.text
.type cuda_on_cpu_switch_stack,@function
cuda_on_cpu_switch_stack:
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
.size cuda_on_cpu_switch_stack, .-cuda_on_cpu_switch_stack
)");

namespace cuda_on_cpu {

class Fiber {
 public:
  Fiber() {
    void* mapped = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    mprotect(mapped, kGuard, PROT_NONE);  // stacks grow down: one that is too small faults instead of spoiling another
    stack_ = static_cast<char*>(mapped) + kGuard;
  }
  ~Fiber() {
    forget_red_zones();  // or the next mapping at this address inherits them
    munmap(stack_ - kGuard, kGuard + kStack);
  }
  Fiber(const Fiber&) = delete;

  // The next resume() calls body(), which must not return. Whatever the stack held is forgotten.
  void start(void (*body)()) {
    forget_red_zones();
    constexpr int kSavedRegisters = 6;
    void** top = reinterpret_cast<void**>(stack_ + kStack);
    *--top = nullptr;  // body's return address; also aligns its stack as a call would
    *--top = reinterpret_cast<void*>(body);
    for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
    pointer_ = top;
  }

  // From the scheduler to the fiber and, by suspend(), back.
  void resume() {
    before_switch(stack_, kStack);
    cuda_on_cpu_switch_stack(&scheduler_.pointer, pointer_);
    after_switch(nullptr, nullptr);
  }
  void suspend() {
    before_switch(scheduler_.stack, scheduler_.size);
    cuda_on_cpu_switch_stack(&pointer_, scheduler_.pointer);
    entered();
  }

  // First thing in body(): tells AddressSanitizer which stack this is.
  static void entered() { after_switch(&scheduler_.stack, &scheduler_.size); }

 private:
  void forget_red_zones() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, kStack);  // an abandoned fiber leaves its own behind
#endif
  }

  static constexpr size_t kGuard = 4096, kStack = 256 << 10;  // touched pages only take memory

  static void before_switch(const void* stack, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, stack, size);
#else
    (void)stack, (void)size;
#endif
  }
  static void after_switch(const void** old_stack, size_t* old_size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, old_stack, old_size);
#else
    (void)old_stack, (void)old_size;
#endif
  }

  struct Scheduler {
    void* pointer;
    const void* stack;
    size_t size;
  };
  static inline Scheduler scheduler_{};
  char* stack_;
  void* pointer_ = nullptr;
};

}  // namespace cuda_on_cpu
