// c = a b^T on tensor cores, double-buffered by cp.async: the stand-in's own largest kernel, and nvcc compiles it too.
//
// A block of 4 warps owns a 32 x 32 tile of c, a warp a 16 x 16 quarter. Rows of a and b are 16-byte aligned (k is a
// multiple of 16 / sizeof(T)); m, n and k need not be multiples of the tile.
#pragma once
#include "cuda/device.h"

namespace fastseg {

// What a kernel below does wrong on purpose.
enum class GemmFault {
  kNone,
  kNoWait,          // the newest copy is not waited for
  kNoFirstBarrier,  // other threads' copies are read
  kNoLastBarrier,   // the next copy overwrites what others still read
  kFragmentIndex,   // two registers of a, swapped
  kColumnIndex,     // the columns of c, as if sum were laid out like a
  kCopyTooFar,      // rows beyond m are copied
};

constexpr int kTile = 32, kGemmThreads = 128;
constexpr int kChunk = 16, kChunksPerRow = 4;               // bytes; a row of a tile holds 64 bytes along k
constexpr int kRowBytes = kChunk * kChunksPerRow + kChunk;  // one chunk of padding: no bank conflicts in ldmatrix
constexpr int kTileBytes = kTile * kRowBytes;
constexpr int kGemmShared = 2 * 2 * kTileBytes;  // two buffers of a tile of a and one of b

// Starts the copies of a tile of `matrix`, rows from `row` and bytes from `byte`; zeros beyond its ends.
template <typename T>
__device__ __forceinline__ void copy_tile(unsigned char* tile, const T* matrix, int row, int byte, int rows, int k) {
  for (int i = threadIdx.x; i < kTile * kChunksPerRow; i += kGemmThreads) {
    const int r = i / kChunksPerRow, b = i % kChunksPerRow * kChunk;
    const bool valid = row + r < rows && byte + b < k * int(sizeof(T));
    const auto* from = reinterpret_cast<const unsigned char*>(matrix + size_t(row + r) * k) + byte + b;
    cp_async_16(tile + r * kRowBytes + b, valid ? from : reinterpret_cast<const unsigned char*>(matrix), valid);
  }
}

template <typename T, GemmFault fault>
__global__ void __launch_bounds__(kGemmThreads)
    gemm_kernel(const T* a, const T* b, float* c, int m, int n, int k) {  // (m, k), (n, k), (m, n)
  unsigned char* shared = dynamic_shared<unsigned char>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int top = blockIdx.y * kTile, left = blockIdx.x * kTile;
  const int warp_row = warp / 2 * 16, warp_column = warp % 2 * 16;
  const int steps = (k * int(sizeof(T)) + kChunk * kChunksPerRow - 1) / (kChunk * kChunksPerRow);
  auto copy_step = [&](int step) {
    unsigned char* buffer = shared + step % 2 * 2 * kTileBytes;
    const int byte = step * kChunk * kChunksPerRow;
    copy_tile(buffer, a, top, byte, fault == GemmFault::kCopyTooFar ? m + 1 : m, k);
    copy_tile(buffer + kTileBytes, b, left, byte, n, k);
  };

  float sums[2][4] = {};
  copy_step(0);
  cp_async_commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) copy_step(step + 1);
    cp_async_commit();  // empty in the last step, so that the wait below always leaves one group
    cp_async_wait<fault == GemmFault::kNoWait ? 2 : 1>();
    if (fault != GemmFault::kNoFirstBarrier) __syncthreads();
    const unsigned char* tile_a = shared + step % 2 * 2 * kTileBytes;
    const unsigned char* tile_b = tile_a + kTileBytes;
    for (int byte = 0; byte < kChunk * kChunksPerRow; byte += 2 * kChunk) {
      uint32_t from_a[4];
      ldmatrix(from_a, tile_a + (warp_row + lane % 16) * kRowBytes + byte + lane / 16 * kChunk);
      for (int half = 0; half < 2; ++half) {
        uint32_t from_b[2];
        ldmatrix(from_b, tile_b + (warp_column + half * 8 + lane % 8) * kRowBytes + byte + lane / 8 % 2 * kChunk);
        if (fault == GemmFault::kFragmentIndex) {
          const uint32_t swapped[4] = {from_a[0], from_a[2], from_a[1], from_a[3]};
          mma_m16n8<T>(sums[half], swapped, from_b);
        } else {
          mma_m16n8<T>(sums[half], from_a, from_b);
        }
      }
    }
    if (fault != GemmFault::kNoLastBarrier) __syncthreads();
  }
  for (int half = 0; half < 2; ++half)
    for (int i = 0; i < 4; ++i) {
      const int row = top + warp_row + lane / 4 + i / 2 * 8;
      const int within = fault == GemmFault::kColumnIndex ? lane % 4 + i % 2 * 4 : lane % 4 * 2 + i % 2;
      const int column = left + warp_column + half * 8 + within;
      if (row < m && column < n) c[size_t(row) * n + column] = sums[half][i];
    }
}

// What each lane's registers hold after ldmatrix of kMatrices 8x8 matrices of 16 bits.
template <int kMatrices, bool kTransposed>
__global__ void fragments_kernel(const uint16_t* matrices, uint32_t* fragments) {  // (kMatrices, 8, 8), (32, kMatrices)
  __shared__ __align__(16) uint16_t rows[kMatrices * 8][8];
  for (int i = threadIdx.x; i < kMatrices * 64; i += 32) rows[i / 8][i % 8] = matrices[i];
  __syncwarp();
  uint32_t fragment[kMatrices];
  const uint16_t* row = rows[threadIdx.x % (kMatrices * 8)];
  kTransposed ? ldmatrix_trans(fragment, row) : ldmatrix(fragment, row);
  for (int m = 0; m < kMatrices; ++m) fragments[threadIdx.x * kMatrices + m] = fragment[m];
}

}  // namespace fastseg
