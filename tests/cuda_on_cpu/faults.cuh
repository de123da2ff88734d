// Small kernels, each right or, if kFaulty, wrong in one way. One block of kThreads; in and out hold kThreads floats,
// and so does dynamic shared memory. Right ones leave out[i] = in[kThreads - 1 - i], unless they say what else.
#pragma once
#include "cuda/device.h"

namespace fastseg {

constexpr int kThreads = 64;

template <bool kFaulty>
__global__ void missing_syncthreads(const float* in, float* out) {
  __shared__ float tile[kThreads];
  const int i = threadIdx.x;
  tile[i] = in[i];
  if (!kFaulty) __syncthreads();
  out[i] = tile[kThreads - 1 - i];
}

// The tile is filled twice; the second filling must wait for the readers of the first.
template <bool kFaulty>
__global__ void missing_syncthreads_before_reuse(const float* in, float* out) {
  __shared__ float tile[kThreads];
  const int i = threadIdx.x;
  for (int round = 0; round < 2; ++round) {
    tile[i] = round == 0 ? in[i] : -1.0f;
    __syncthreads();
    if (round == 0) out[i] = tile[kThreads - 1 - i];
    if (!kFaulty) __syncthreads();
  }
}

template <bool kFaulty>
__global__ void missing_syncwarp(const float* in, float* out) {
  float* tile = dynamic_shared<float>();
  const int i = threadIdx.x, first = i / 32 * 32;
  tile[i] = in[kThreads - 1 - i];
  if (!kFaulty) __syncwarp();
  const float mirrored = tile[first + 31 - i % 32];
  out[i] = __shfl_xor_sync(0xffffffffu, mirrored, 31);
}

// The shuffle makes lanes wait for each other, but orders no memory accesses.
template <bool kFaulty>
__global__ void shuffle_as_barrier(const float* in, float* out) {
  float* tile = dynamic_shared<float>();
  const int i = threadIdx.x, warp = i / 32;
  for (int round = 0; round < 32; ++round) {
    const float value = __shfl_sync(0xffffffffu, in[kThreads - 1 - i], round);
    if (i % 32 == 0) tile[warp] = value;
    __syncwarp();
    if (i % 32 == round) out[i] = tile[warp];
    if (!kFaulty) __syncwarp();
  }
}

template <bool kFaulty>
__global__ void missing_copy_wait(const float* in, float* out) {
  float* tile = dynamic_shared<float>();
  const int i = threadIdx.x;
  if (i < kThreads / 4) cp_async_16(tile + 4 * i, in + 4 * i, true);
  cp_async_commit();
  if (!kFaulty) cp_async_wait<0>();
  __syncthreads();
  out[i] = tile[kThreads - 1 - i];
}

// wait_group counts groups: one that was never committed is not waited for.
template <bool kFaulty>
__global__ void missing_copy_commit(const float* in, float* out) {
  float* tile = dynamic_shared<float>();
  const int i = threadIdx.x;
  if (i < kThreads / 4) cp_async_16(tile + 4 * i, in + 4 * i, true);
  if (!kFaulty) cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  out[i] = tile[kThreads - 1 - i];
}

// A wait is for the thread's own copies; others see them after a barrier.
template <bool kFaulty>
__global__ void missing_barrier_after_copy_wait(const float* in, float* out) {
  float* tile = dynamic_shared<float>();
  const int i = threadIdx.x;
  if (i < kThreads / 4) cp_async_16(tile + 4 * i, in + 4 * i, true);
  cp_async_commit();
  cp_async_wait<0>();
  if (!kFaulty) __syncthreads();
  out[i] = tile[kThreads - 1 - i];
}

template <bool kFaulty>
__global__ void read_outside_global(const float* in, float* out) {
  const int i = threadIdx.x;
  out[i] = in[kThreads - (kFaulty ? 0 : 1) - i];
}

template <bool kFaulty>
__global__ void write_outside_global(const float* in, float* out) {
  const int i = threadIdx.x;
  out[kFaulty ? i + 1 : i] = in[kThreads - 1 - i];
}

template <bool kFaulty>
__global__ void read_outside_dynamic_shared(const float* in, float* out) {
  float* tile = dynamic_shared<float>();
  const int i = threadIdx.x;
  tile[i] = in[i];
  __syncthreads();
  out[i] = tile[kThreads - (kFaulty ? 0 : 1) - i];
}

template <bool kFaulty>
__global__ void write_outside_dynamic_shared(const float* in, float* out) {
  float* tile = dynamic_shared<float>();
  const int i = threadIdx.x;
  tile[kFaulty ? i + 1 : i] = in[i];
  __syncthreads();
  out[i] = tile[kThreads - 1 - i];
}

template <bool kFaulty>
__global__ void read_outside_static_shared(const float* in, float* out) {
  __shared__ float tile[kThreads];
  const float* read = tile;
  const int i = threadIdx.x;
  tile[i] = in[i];
  __syncthreads();
  out[i] = read[kThreads - (kFaulty ? 0 : 1) - i];
}

template <bool kFaulty>
__global__ void write_outside_static_shared(const float* in, float* out) {
  __shared__ float tile[kThreads];
  float* written = tile;
  const int i = threadIdx.x;
  written[kFaulty ? i + 1 : i] = in[i];
  __syncthreads();
  out[i] = tile[kThreads - 1 - i];
}

template <bool kFaulty>
__global__ void misaligned_vector_load(const float* in, float* out) {
  const int i = threadIdx.x, first = (kThreads - 1 - i) / 4 * 4;
  const int start = kFaulty && first > 0 ? first - 1 : first;
  const float4 four = *reinterpret_cast<const float4*>(in + start);
  const float values[4] = {four.x, four.y, four.z, four.w};
  out[i] = values[kThreads - 1 - i - start];
}

// All threads pass a barrier, but not the same one.
template <bool kFaulty>
__global__ void divergent_syncthreads(const float* in, float* out) {
  __shared__ float tile[kThreads];
  const int i = threadIdx.x;
  tile[i] = in[i];
  if (kFaulty && i >= 48)
    __syncthreads();
  else
    __syncthreads();
  out[i] = tile[kThreads - 1 - i];
}

// Half a warp is at a barrier, the other at a shuffle that names all lanes.
template <bool kFaulty>
__global__ void divergent_shuffle(const float* in, float* out) {
  const int i = threadIdx.x;
  float value = in[kThreads - 1 - i];
  if (!kFaulty || i % 32 < 16) value = __shfl_xor_sync(0xffffffffu, value, 1);
  __syncwarp();
  out[i] = __shfl_xor_sync(0xffffffffu, value, 1);
}

template <bool kFaulty>
__global__ void lane_outside_its_mask(const float* in, float* out) {
  const float value = in[kThreads - 1 - threadIdx.x];
  out[threadIdx.x] = __shfl_xor_sync(kFaulty ? 0x0000ffffu : 0xffffffffu, value, 0);
}

template <bool kFaulty>
__global__ void shuffle_from_an_absent_lane(const float* in, float* out) {
  const int i = threadIdx.x;
  out[i] = in[kThreads - 1 - i];
  if (i % 32 < 16) out[i] = __shfl_xor_sync(0x0000ffffu, out[i], kFaulty ? 16 : 0);
}

// Two threads never write their element.
template <bool kFaulty>
__global__ void uninitialised_dynamic_shared(const float* in, float* out) {
  float* tile = dynamic_shared<float>();
  const int i = threadIdx.x;
  if (!kFaulty || i < kThreads - 2) tile[i] = in[i];
  __syncthreads();
  out[i] = tile[kThreads - 1 - i];
}

template <bool kFaulty>
__global__ void uninitialised_static_shared(const float* in, float* out) {
  __shared__ float tile[kThreads];
  const int i = threadIdx.x;
  if (!kFaulty || i < kThreads - 2) tile[i] = in[i];
  __syncthreads();
  out[i] = tile[kThreads - 1 - i];
}

template <bool kFaulty>
__global__ void uninitialised_register(const float* in, float* out) {
  float sum[2];
  if (!kFaulty) sum[0] = sum[1] = 0.0f;
  for (int i = 0; i < kThreads; ++i) sum[i % 2] += i == kThreads - 1 - int(threadIdx.x) ? in[i] : 0.0f;
  out[threadIdx.x] = sum[0] + sum[1];
}

// Right ones leave the sum of in in out[0].
template <bool kFaulty>
__global__ void sum_without_atomics(const float* in, float* out) {
  __shared__ float sum;
  if (threadIdx.x == 0) sum = 0.0f;
  __syncthreads();
  if (kFaulty)
    sum += in[threadIdx.x];
  else
    atomicAdd(&sum, in[threadIdx.x]);
  __syncthreads();
  out[threadIdx.x] = threadIdx.x == 0 ? sum : in[kThreads - 1 - threadIdx.x];
}

template <bool kFaulty>
__global__ void failed_assertion(const float* in, float* out) {
  const int i = threadIdx.x;
  assert(!kFaulty || i != 40);
  out[i] = in[kThreads - 1 - i];
}

// Right wherever it can be launched; what is wrong is the launch.
template <bool>
__global__ void __launch_bounds__(kThreads) bounded(const float* in, float* out) {
  const unsigned i = threadIdx.x;
  if (i < kThreads) out[i] = in[kThreads - 1 - i];
}

template <bool>
__global__ void unbounded(const float* in, float* out) {
  const unsigned i = threadIdx.x;
  if (i < kThreads) out[i] = in[kThreads - 1 - i];
}

}  // namespace fastseg
