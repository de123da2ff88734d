// What -fsanitize=thread calls, with races.h behind it instead of the compiler's own library. One line each: the names
// and signatures are the compiler's.
#pragma once
#include "races.h"

#define CUDA_ON_CPU_ACCESS(name, bytes, writes)                                                  \
  extern "C" CUDA_ON_CPU_NOT_WATCHED void __tsan_##name(void* address) {                         \
    cuda_on_cpu::note(address, bytes, writes, false, {nullptr, 0}, __builtin_return_address(0)); \
  }
CUDA_ON_CPU_ACCESS(read1, 1, false)
CUDA_ON_CPU_ACCESS(write1, 1, true)
CUDA_ON_CPU_ACCESS(read2, 2, false)
CUDA_ON_CPU_ACCESS(write2, 2, true)
CUDA_ON_CPU_ACCESS(read4, 4, false)
CUDA_ON_CPU_ACCESS(write4, 4, true)
CUDA_ON_CPU_ACCESS(read8, 8, false)
CUDA_ON_CPU_ACCESS(write8, 8, true)
CUDA_ON_CPU_ACCESS(read16, 16, false)
CUDA_ON_CPU_ACCESS(write16, 16, true)
CUDA_ON_CPU_ACCESS(unaligned_read2, 2, false)
CUDA_ON_CPU_ACCESS(unaligned_write2, 2, true)
CUDA_ON_CPU_ACCESS(unaligned_read4, 4, false)
CUDA_ON_CPU_ACCESS(unaligned_write4, 4, true)
CUDA_ON_CPU_ACCESS(unaligned_read8, 8, false)
CUDA_ON_CPU_ACCESS(unaligned_write8, 8, true)
CUDA_ON_CPU_ACCESS(unaligned_read16, 16, false)
CUDA_ON_CPU_ACCESS(unaligned_write16, 16, true)
#undef CUDA_ON_CPU_ACCESS

#define CUDA_ON_CPU_RANGE(name, writes)                                                          \
  extern "C" CUDA_ON_CPU_NOT_WATCHED void __tsan_##name(void* address, size_t bytes) {           \
    cuda_on_cpu::note(address, bytes, writes, false, {nullptr, 0}, __builtin_return_address(0)); \
  }
CUDA_ON_CPU_RANGE(read_range, false)
CUDA_ON_CPU_RANGE(write_range, true)
#undef CUDA_ON_CPU_RANGE

// The stand-in's own: reference counts, guards of function-local statics, virtual tables. Kernels have none of them.
extern "C" {
void __tsan_init() {}
CUDA_ON_CPU_NOT_WATCHED void __tsan_vptr_update(void**, void*) {}
CUDA_ON_CPU_NOT_WATCHED char __tsan_atomic8_load(const volatile char* p, int) { return *p; }
CUDA_ON_CPU_NOT_WATCHED int __tsan_atomic32_fetch_add(volatile int* p, int by, int) {
  return __atomic_fetch_add(p, by, __ATOMIC_SEQ_CST);
}
}
