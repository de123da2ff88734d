// What device code needs beyond plain CUDA C++, each under one name: dynamic shared memory, asynchronous copies, tensor
// cores (sm_80 on) and one fast function. Inline PTX under nvcc; under a plain C++ compiler tests/cuda_on_cpu, which
// runs kernels on the CPU. Below that, what several kernels share: elements of any dtype as floats, launches.
//
// clang-format off
//   T* dynamic_shared<T>()                 the block's dynamic shared memory, 16-byte aligned
//   cp_async_16(shared, global, valid)     starts a copy of 16 bytes, of zeros if !valid (global is not read)
//   cp_async_commit()                      closes a group of copies
//   cp_async_wait<N>()                     waits until N groups or fewer are under way
//   ldmatrix(fragment, row)                8x8 matrices of 16 bits, one per register of `fragment` (1, 2 or 4);
//   ldmatrix_trans(fragment, row)          lane l gives the address of row l % 8 of matrix l / 8
//   mma_m16n8<T>(sum, a, b)                sum += a b with 32 bytes of T along k: k16 for __half and __nv_bfloat16,
//                                          k8 for float, whose bits are read as tf32
//   exp2_approx(x)                         2^x in one instruction: off by 2^-22 of the value, 0 instead of subnormals
//   count_step()                           nothing; tests/cuda_on_cpu counts calls
// clang-format on
#pragma once
#ifndef __CUDACC__
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cassert>
#include <cstdint>

namespace fastseg {

template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ uint4 fastseg_dynamic_shared[];
  return reinterpret_cast<T*>(fastseg_dynamic_shared);
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

template <int kUnderWay>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kUnderWay) : "memory");
}

__device__ __forceinline__ void ldmatrix(uint32_t (&fragment)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\n"
               : "=r"(fragment[0])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix(uint32_t (&fragment)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_trans(uint32_t (&fragment)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];\n"
               : "=r"(fragment[0])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_trans(uint32_t (&fragment)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_trans(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

template <typename T>
__device__ __forceinline__ void mma_m16n8(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_m16n8<__half>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_m16n8<__nv_bfloat16>(float (&sum)[4], const uint32_t (&a)[4],
                                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_m16n8<float>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ void count_step() {}

}  // namespace fastseg
#endif
#include <algorithm>
#include <climits>

namespace fastseg {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void from_float(float x, float& to) { to = x; }
__device__ __forceinline__ void from_float(float x, __half& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void from_float(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

template <typename Number>
__host__ __device__ __forceinline__ Number ceil_div(Number whole, Number part) {
  return (whole + part - 1) / part;
}

template <typename T>
constexpr int kPerVector = 16 / sizeof(T);

// So many elements, and those that fill up the last vector.
template <typename T>
int whole_vectors(int64_t elements) {
  return int(ceil_div<int64_t>(elements, kPerVector<T>) * kPerVector<T>);
}

// One element, or the aligned 16 bytes of kPerVector<T>, as they lie in memory.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Elements {
  static_assert(kCount == 1 || kCount == kPerVector<T>);
  T values[kCount];

  __device__ __forceinline__ static Elements load(const T* from) {
    if constexpr (kCount == 1) {
      return {{*from}};
    } else {
      const uint4 bits = *reinterpret_cast<const uint4*>(from);
      Elements elements;
      memcpy(static_cast<void*>(&elements), &bits, sizeof bits);
      return elements;
    }
  }

  __device__ __forceinline__ void store(T* to) const {
    if constexpr (kCount == 1) {
      *to = values[0];
    } else {
      uint4 bits;
      memcpy(&bits, this, sizeof bits);
      *reinterpret_cast<uint4*>(to) = bits;
    }
  }
};

// How to launch a kernel. Kernels loop over what does not fit into the y and z of a grid, which end at most_blocks.
struct LaunchShape {
  dim3 grid, threads;
  size_t shared;  // bytes
};

constexpr int64_t kMostBlocksYZ = 65535;

// More blocks than a grid can have stay too many, and their launch fails.
inline LaunchShape row_of_blocks(int64_t blocks, dim3 threads, size_t shared = 0) {
  return {dim3(unsigned(std::min<int64_t>(blocks, UINT_MAX))), threads, shared};
}

// Host code that launches several kernels takes a Device: launch.h's Gpu, or the one of tests/cuda_on_cpu. It has
//   multiprocessors                               to keep busy
//   shared_bytes                                  of a block, without asking for more
//   T* scratch<T>(int64_t count)                  memory to the end of the call, aligned to 16 bytes
//   launch(LaunchShape, kernel, arguments...)     on its stream

}  // namespace fastseg
