// The sums of a tile (tile_product.h), step by step of kDepth<T>: copies of both factors run kStages - 1 steps ahead.
// Where tiles are few, several blocks take parts of a tile's steps, and their sums are added up in order.
#pragma once
#include "cuda/tile_product.h"

namespace fastseg {

constexpr int kStages = 3;  // of shared memory, but where a kernel says otherwise: two steps are under way while one is
                            // added up

// Copies rows k, k + 1, ... of a packed factor, `pitch` elements apart, from element `first` on. Zeros beyond it.
template <typename T, int kColumns>
__device__ __forceinline__ void copy_rows(T* b, const T* factor, int64_t first, int64_t k, int64_t depth, int64_t pitch,
                                          int columns) {
  constexpr int kVectors = kColumns / kPerVector<T>;
#pragma unroll
  for (int i = threadIdx.x; i < kDepth<T> * kVectors; i += kTileThreads) {
    const int64_t from_k = k + i / kVectors;
    const int column = i % kVectors * kPerVector<T>;
    const bool exists = from_k < depth && column < columns;
    cp_async_16(b + i / kVectors * kPitch<T, kColumns> + column,
                exists ? factor + first + from_k * pitch + column : factor, exists);
  }
}

// Calls copy(stage) for each step, in order, and add(stage) when what copy() started has arrived for all threads.
template <int kStages = fastseg::kStages, typename Copy, typename Add>
__device__ __forceinline__ void for_each_step(int steps, Copy&& copy, Add&& add) {
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) copy(step);
    cp_async_commit();
  }
  for (int step = 0, stage = 0, ahead = kStages - 1; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) copy(ahead);
    cp_async_commit();  // empty in the last steps, so that the wait above always leaves as many
    add(stage);
    stage = stage + 1 == kStages ? 0 : stage + 1;
    ahead = ahead + 1 == kStages ? 0 : ahead + 1;
  }
}

constexpr int kSumThreads = 256;  // each adds up one sum

__device__ __forceinline__ float sum_of_parts(const float* __restrict__ parts, int count, int64_t elements, int64_t i) {
  float sum = 0.0f;
  for (int part = 0; part < count; ++part) sum += parts[part * elements + i];
  return sum;
}

}  // namespace fastseg
