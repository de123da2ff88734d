// CUDA's execution model for a C++ compiler, for tests: csrc/cuda/device.h includes it where there is no nvcc.
// README.md says what is modelled and what is not.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>

#include "collectives.h"
#include "copies.h"
#include "tensor_cores.h"

#undef __global__
#undef __device__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__ static
#define __device__
#define __forceinline__ inline
// For grid.h. The sums because g++ 12 wants an expression: it fails on the bare name of a constant.
#define __launch_bounds__(threads, ...) __attribute__((patchable_function_entry((threads) + 0, (threads) + 0)))
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static  // see shared_memory.h
#else
#define __shared__ static thread_local
#endif

#define threadIdx (cuda_on_cpu::Block::current().running().position)
#define blockIdx (cuda_on_cpu::Block::current().position)
#define blockDim (cuda_on_cpu::Block::current().size)
#define gridDim (cuda_on_cpu::Block::current().grid_size)

// A device-side assertion is an error of its own and does not end the process.
#undef assert
#define assert(condition)                                                                    \
  ((condition) ? void()                                                                      \
               : cuda_on_cpu::Block::current().fail("assertion failed: " #condition " at " + \
                                                    cuda_on_cpu::text(cuda_on_cpu::Place{__FILE__, __LINE__})))

using std::max;
using std::min;

// Approximate on a GPU, not here.
inline float __fdividef(float x, float y) { return x / y; }

namespace cuda_on_cpu {
inline int64_t steps_counted = 0;  // by threads of all launches
inline void count_step() { ++steps_counted; }
inline float exp2_approx(float x) { return std::exp2(x); }
}  // namespace cuda_on_cpu

namespace fastseg {
using cuda_on_cpu::count_step;
using cuda_on_cpu::cp_async_16;
using cuda_on_cpu::cp_async_commit;
using cuda_on_cpu::cp_async_wait;
using cuda_on_cpu::dynamic_shared;
using cuda_on_cpu::exp2_approx;
using cuda_on_cpu::ldmatrix;
using cuda_on_cpu::ldmatrix_trans;
using cuda_on_cpu::mma_m16n8;
}  // namespace fastseg
