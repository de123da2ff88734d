// The gradient of pyramid_pool (fastseg/ops/pyramid_pool.py), bound by the bytes of what it writes.
// Precision: float32 sums, in the order of the cells, rounded once.
#pragma once
#include "cuda/pyramid_pool_cells.cuh"

namespace fastseg {

// (N, C, cells), any strides.
template <typename T>
struct PoolCells {
  const T* data;
  int64_t strides[3];

  __device__ __forceinline__ T at(int64_t image, int64_t channel, int64_t cell) const {
    return data[image * strides[0] + channel * strides[1] + cell * strides[2]];
  }
};

struct PoolSpreadShape {
  LaunchShape launch;
  PoolTiles tiles;
  int width;  // segments of columns that are held at once
};

inline PoolSpreadShape pool_spread_shape(const PoolOrder& map, const Pyramid& pyramid, int64_t shared_bytes) {
  const PoolTiles tiles = pool_tiles(map, pyramid.columns.pixels, pyramid.rows.segments);
  const int64_t most = shared_bytes / int64_t(tiles.channels * sizeof(float));
  const int width = int(std::clamp<int64_t>(most, 1, pyramid.columns.segments));
  return {row_of_blocks(map.images * tiles.across(map.channels) * pyramid.rows.segments, kPoolThreads,
                        width * tiles.channels * sizeof(float)),
          tiles, width};
}

// Of means. All pixels of a segment have the same gradient: a block gathers those of its tile from the cells, then its
// threads own columns and channels, kCount at once, and write all rows.
template <typename T, int kCount>
__global__ void __launch_bounds__(kPoolThreads, 3)  // left to itself, the compiler spills to have more blocks
    pyramid_pool_spread_kernel(PoolCells<T> grad, T* __restrict__ output, PoolOrder order, Pyramid pyramid,
                               PoolTiles tiles, int width) {
  float* held = dynamic_shared<float>();  // [segments][tiles.channels]
  const PoolTile tile = tiles.tile_of(blockIdx.x, order.channels, pyramid.rows.segments);
  const PoolRange rows = pyramid.rows.segment(tile.segment);
  const int64_t row_step = int64_t(pyramid.columns.pixels) * (order.channels_last ? order.channels : 1);
  for (int first = 0; first < pyramid.columns.segments; first += width) {
    const int segments = min(width, pyramid.columns.segments - first);
    for (int i = threadIdx.x; i < segments * tile.held; i += kPoolThreads) {
      const int channel = i % tile.held, segment = i / tile.held;
      float sum = 0.0f;
      for_each_cell_at(pyramid, rows.begin, pyramid.columns.edge(first + segment), [&](int cell, int pixels) {
        sum += to_float(grad.at(tile.image, tile.channel + channel, cell)) / float(pixels);
      });
      held[segment * tiles.channels + channel] = sum;
    }
    __syncthreads();
    const int begin = pyramid.columns.edge(first), columns = pyramid.columns.edge(first + segments) - begin;
    const int vectors = tile.held / kCount;
    for (int i = threadIdx.x; i < columns * vectors; i += kPoolThreads) {
      const int channel = (order.channels_last ? i % vectors : i / columns) * kCount;
      const int column = begin + (order.channels_last ? i / vectors : i % columns);
      const float* from = held + (pyramid.columns.segment_at(column, first) - first) * tiles.channels + channel;
      Elements<T, kCount> elements;
#pragma unroll
      for (int j = 0; j < kCount; ++j) from_float(from[j], elements.values[j]);
      const int64_t inner = int64_t(rows.begin) * pyramid.columns.pixels + column;
      T* to = output + order.offset(tile.image, tile.channel + channel, inner);
      for (int y = rows.begin; y < rows.end; ++y, to += row_step) elements.store(to);
    }
    __syncthreads();  // the next segments overwrite these
  }
}

// Of maxima, where `output` is zero. A thread owns a channel of a cell: if no cell before has its maximum at the same
// pixel, it adds up the gradients of all those that have.
template <typename T>
__global__ void __launch_bounds__(kPoolThreads)
    pyramid_pool_scatter_kernel(PoolCells<T> grad, PoolCells<int64_t> indices, T* __restrict__ output, PoolOrder order,
                                PoolOrder cells, Pyramid pyramid) {
  const int64_t i = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x;
  if (i >= cells.size()) return;
  const PoolPlace place = cells.place(i);
  const int64_t index = indices.at(place.image, place.channel, place.inner);
  const int y = int(index) / pyramid.columns.pixels, x = int(index) % pyramid.columns.pixels;
  float sum = 0.0f;
  int first = -1;
  for_each_cell_at(pyramid, y, x, [&](int cell, int) {
    if (indices.at(place.image, place.channel, cell) != index) return;
    if (first < 0) first = cell;
    sum += to_float(grad.at(place.image, place.channel, cell));
  });
  if (first == place.inner) from_float(sum, output[order.offset(place.image, place.channel, index)]);
}

}  // namespace fastseg
