// Where a tile of a product lies in memory, and how its sums get there.
#pragma once
#include <climits>

#include "cuda/deconv2d_sides.cuh"
#include "cuda/tile_product.h"

namespace fastseg {

constexpr int kStagedRows = 64;      // of sums on their way to memory; they take the place of the stages
constexpr int kNever = INT_MIN / 2;  // a coordinate outside every image, and so is what is added to it

// Of a row or a column of a product: an output is at the sum of both, if its y and x are within the image.
struct Place {
  int64_t offset;
  int y, x;
};

// Of a tile's rows and columns; and what rows read. In shared memory.
template <int kColumns>
struct Places {
  Place from[kTileRows], rows[kTileRows], columns[kColumns];
  float bias[kColumns];
};

// What a product becomes: output = round(sum + bias + skip), or a part of a sum that is to be added up.
template <typename T>
struct Result {
  T* output;
  int64_t elements;
  int height, width;
  int run;        // columns of so many neighbours that are neighbours in memory, too; a power of two
  bool vectors;   // whole vectors of columns are, and aligned
  const T* skip;  // as output, or null
  float* parts;   // (parts, output), if there are several
};

// Neighbouring threads take the neighbours of a run, then rows, then other runs. A thread's column changes least.
template <int kColumns, int kCount, typename T, typename Out>
__device__ __forceinline__ void store_staged(const Result<T>& result, const float* staged,
                                             const Places<kColumns>& places, int first_row, Out* output) {
  const int run = min(result.run, kColumns) / kCount, rows_at_once = min(kTileThreads / run, kStagedRows);
  const int runs_at_once = kTileThreads / run / rows_at_once;
  const int first_run = threadIdx.x / run / rows_at_once;
  for (int column = (first_run * run + threadIdx.x % run) * kCount; column < kColumns;
       column += runs_at_once * run * kCount) {
    const Place to_column = places.columns[column];
    float bias[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) bias[j] = places.bias[column + j];
    for (int row = threadIdx.x / run % rows_at_once; row < kStagedRows; row += rows_at_once) {
      const Place to_row = places.rows[first_row + row];
      const int y = to_row.y + to_column.y, x = to_row.x + to_column.x;
      if (unsigned(y) >= unsigned(result.height) || unsigned(x) >= unsigned(result.width)) continue;
      const int64_t offset = to_row.offset + to_column.offset;
      float sums[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j) sums[j] = staged[row * kPitch<float, kColumns> + column + j] + bias[j];
      if (result.skip != nullptr) {
        const auto skip = Elements<T, kCount>::load(result.skip + offset);
#pragma unroll
        for (int j = 0; j < kCount; ++j) sums[j] += to_float(skip.values[j]);
      }
      Elements<Out, kCount> rounded;
#pragma unroll
      for (int j = 0; j < kCount; ++j) from_float(sums[j], rounded.values[j]);
      rounded.store(output + offset);
    }
  }
}

// Brings sums from registers to memory by way of shared memory, so that neighbouring threads write neighbours.
template <int kColumns, typename Sums, typename T>
__device__ __forceinline__ void store(const Result<T>& result, const Sums& sums, const Places<kColumns>& places,
                                      float* staged, int part) {
  for (int first_row = 0; first_row < kTileRows; first_row += kStagedRows) {
    __syncthreads();
    sums.each([&](int row, int column, float sum) {
      if (row / kStagedRows * kStagedRows == first_row)
        staged[row % kStagedRows * kPitch<float, kColumns> + column] = sum;
    });
    __syncthreads();
    if (result.parts != nullptr)
      store_staged<kColumns, 1>(result, staged, places, first_row, result.parts + part * result.elements);
    else if (result.vectors)
      store_staged<kColumns, kPerVector<T>>(result, staged, places, first_row, result.output);
    else
      store_staged<kColumns, 1>(result, staged, places, first_row, result.output);
  }
}

}  // namespace fastseg
