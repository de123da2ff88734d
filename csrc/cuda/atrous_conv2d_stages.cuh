// What the products of atrous_conv2d share: stages of shared memory, and the way of their sums through it.
#pragma once
#include "cuda/position.h"
#include "cuda/tile_steps.h"

namespace fastseg {

// Four stages of 64 bytes per row are 75 KB, which leaves an sm_80 room for two blocks. Three steps under way should
// hide memory: a step of half precision keeps the tensor cores of a multiprocessor busy for 400 cycles or more, and two
// blocks share them. Rows of 128 bytes would halve the barriers, but cost the second block there.
constexpr int kAtrousStages = 4;

// Blocks of a multiprocessor, as registers allow.
template <int kColumns>
constexpr int kAtrousBlocksAtOnce = kColumns == 128 ? 2 : 3;

template <typename T, int kColumns, StoredBy kStored>
struct AtrousStages {
  static constexpr int kFactorA = kTileElementsA<T, kStored>;
  static constexpr int kEach = kFactorA + kTileElementsB<T, kColumns>;
  static constexpr size_t kBytes = kAtrousStages * kEach * sizeof(T);
  static_assert(kBytes >= kTileRows * kPitch<float, kColumns> * sizeof(float));  // sums take the place of the stages
};

// The sums of `steps` steps, which copy(a, b) starts the copies of, in order.
template <typename T, int kColumns, StoredBy kStored, typename Copy>
__device__ __forceinline__ void add_steps(TileSums<T, kColumns, kStored>& sums, int steps, Copy&& copy) {
  using Stages = AtrousStages<T, kColumns, kStored>;
  T* stages = dynamic_shared<T>();
  const auto copy_step = [&](int stage) {
    T* a = stages + stage * Stages::kEach;
    copy(a, a + Stages::kFactorA);
  };
  for_each_step<kAtrousStages>(steps, copy_step, [&](int stage) {
    const T* a = stages + stage * Stages::kEach;
    sums.add(a, a + Stages::kFactorA);
    count_step();
  });
}

// Brings sums from registers to shared memory: rows of kPitch<float, kColumns>. Ends with a barrier.
template <typename T, int kColumns, StoredBy kStored>
__device__ __forceinline__ const float* staged(const TileSums<T, kColumns, kStored>& sums) {
  float* rows = dynamic_shared<float>();
  __syncthreads();
  sums.each([&](int row, int column, float sum) { rows[row * kPitch<float, kColumns> + column] = sum; });
  __syncthreads();
  return rows;
}

}  // namespace fastseg
