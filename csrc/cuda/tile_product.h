// c += a b for tiles of a and b in shared memory. c is float32 in the registers of a block's kTileThreads threads.
//
//   a  kTileRows x kDepth<T>, stored by rows, or by k (then as b is)      c  kTileRows x kColumns
//   b  kDepth<T> x kColumns, stored by k
//
// Half precision runs on tensor cores. float32 does not: its products are exact to float32 and need FMA units.
#pragma once
#include "cuda/device.h"

namespace fastseg {

constexpr int kTileThreads = 256;
constexpr int kTileRows = 128;
template <typename T>
constexpr int kDepth = 64 / sizeof(T);  // of k: two sectors of memory per row, and two k16 of half precision

// Elements from one row of a stored tile to the next: 16 bytes of padding keep ldmatrix free of bank conflicts.
template <typename T, int kElements>
constexpr int kPitch = kElements + kPerVector<T>;

enum class StoredBy { kRows, kK };

template <typename T, StoredBy kStored>
constexpr int kTileElementsA =
    kStored == StoredBy::kRows ? kTileRows * kPitch<T, kDepth<T>> : kDepth<T> * kPitch<T, kTileRows>;
template <typename T, int kColumns>
constexpr int kTileElementsB = kDepth<T> * kPitch<T, kColumns>;

// A warp owns 32 columns: 64 rows of them where kColumns is 128, 16 where it is 32.
template <typename T, int kColumns, StoredBy kStored>
class TileSums {
 public:
  __device__ __forceinline__ TileSums()
      : lane_(threadIdx.x % kWarp),
        row_(threadIdx.x / kWarp / kWarpsAcross * kRows),
        column_(threadIdx.x / kWarp % kWarpsAcross * 32) {}

  __device__ __forceinline__ void add(const T* a, const T* b) {
#pragma unroll
    for (int k = 0; k < kDepth<T>; k += 16) {
      uint32_t from_b[4][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t four[4];
        ldmatrix_trans(four, b + (k + lane_ % 16) * kPitch<T, kColumns> + column_ + half * 16 + lane_ / 16 * 8);
#pragma unroll
        for (int i = 0; i < 4; ++i) from_b[half * 2 + i / 2][i % 2] = four[i];
      }
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
        uint32_t from_a[4];
        if constexpr (kStored == StoredBy::kRows)
          ldmatrix(from_a, a + (row_ + i * 16 + lane_ % 16) * kPitch<T, kDepth<T>> + k + lane_ / 16 * 8);
        else
          ldmatrix_trans(
              from_a, a + (k + lane_ / 16 * 8 + lane_ % 8) * kPitch<T, kTileRows> + row_ + i * 16 + lane_ / 8 % 2 * 8);
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_m16n8<T>(sums_[i][j], from_a, from_b[j]);
      }
    }
  }

  // Calls f(row, column, sum) for each sum of this thread.
  template <typename F>
  __device__ __forceinline__ void each(F&& f) const {
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          f(row_ + i * 16 + lane_ / 4 + e / 2 * 8, column_ + j * 8 + lane_ % 4 * 2 + e % 2, sums_[i][j][e]);
  }

 private:
  static constexpr int kWarpsAcross = kColumns / 32, kRows = kTileRows * kWarpsAcross / (kTileThreads / kWarp);
  int lane_, row_, column_;
  float sums_[kRows / 16][4][4] = {};
};

// A thread owns every kThreadsDown-th row, and quadruples of columns: 8 x 8 sums where kColumns is 128, 4 x 4 where it
// is 32. Threads of a warp read the same or neighbouring banks.
template <int kColumns, StoredBy kStored>
class TileSums<float, kColumns, kStored> {
 public:
  __device__ __forceinline__ TileSums()
      : row_(threadIdx.x / kThreadsAcross), column_(threadIdx.x % kThreadsAcross * 4) {}

  __device__ __forceinline__ void add(const float* a, const float* b) {
#pragma unroll 2  // more would spill registers
    for (int k = 0; k < kDepth<float>; ++k) {
      float from_a[kRows], from_b[kQuads * 4];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int row = row_ + i * kThreadsDown;
        from_a[i] = kStored == StoredBy::kRows ? a[row * kPitch<float, kDepth<float>> + k]
                                               : a[k * kPitch<float, kTileRows> + row];
      }
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) {
        const auto four = Elements<float, 4>::load(b + k * kPitch<float, kColumns> + column_ + quad * kQuadStep);
#pragma unroll
        for (int j = 0; j < 4; ++j) from_b[quad * 4 + j] = four.values[j];
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kQuads * 4; ++j) sums_[i][j] += from_a[i] * from_b[j];
    }
  }

  template <typename F>
  __device__ __forceinline__ void each(F&& f) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kQuads * 4; ++j) f(row_ + i * kThreadsDown, column_ + j / 4 * kQuadStep + j % 4, sums_[i][j]);
  }

 private:
  static constexpr int kQuads = kColumns == 128 ? 2 : 1, kThreadsAcross = kColumns / 4 / kQuads,
                       kThreadsDown = kTileThreads / kThreadsAcross, kRows = kTileRows / kThreadsDown,
                       kQuadStep = kThreadsAcross * 4;
  int row_, column_;
  float sums_[kRows][kQuads * 4] = {};
};

}  // namespace fastseg
