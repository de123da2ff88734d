// pyramid_pool (fastseg/ops/pyramid_pool.py), bound by the input's bytes, which are read once.
//
// Two kernels: the first reduces each segment of rows, for each of the columns that the cells of any bin have; the
// second reduces the segments of each cell. Between them is memory of, for 60 x 60 pixels and bins 1, 2, 3 and 6, a
// fiftieth of the input's pixels, in float32. Precision: float32 sums, divided by the number of pixels and rounded
// once. Their order depends on shapes alone.
#pragma once
#include <type_traits>

#include "cuda/pyramid_pool_cells.cuh"

namespace fastseg {

// What is known of some pixels: their sum.
struct Total {
  float value = 0.0f;

  __device__ __forceinline__ void take(float other, int) { value += other; }
  __device__ __forceinline__ void merge(const Total& other) { value += other.value; }
};

// Or the largest, the first of equal ones. A NaN is larger than all else, and of several the last counts.
struct Largest {
  float value = -INFINITY;
  int pixel = -1;  // none yet

  __device__ __forceinline__ void take(float other, int at) {
    const bool larger = other != other ? value == value || at > pixel : other > value || (other == value && at < pixel);
    if (pixel < 0 || larger) value = other, pixel = at;
  }
  __device__ __forceinline__ void merge(const Largest& other) {
    if (other.pixel >= 0) take(other.value, other.pixel);
  }
};

template <typename T>
struct PoolInput {
  const T* data;
  int64_t strides[4];  // of (N, C, H, W), any
};

// Held columns of a tile, in shared memory, as they are in memory.
struct PoolHeld {
  int columns, channels;
  bool channels_last;

  __device__ __forceinline__ int offset(int column, int channel) const {
    return channels_last ? column * channels + channel : channel * columns + column;
  }
};

struct PoolRowsShape {
  LaunchShape launch;
  PoolTiles tiles;
  int width;  // columns that are held at once
};

inline PoolRowsShape pool_rows_shape(const PoolOrder& map, const Pyramid& pyramid, int at_once, size_t bytes_each,
                                     int64_t shared_bytes) {
  const PoolTiles tiles = pool_tiles(map, pyramid.columns.pixels, pyramid.rows.segments);
  const int64_t most = shared_bytes / int64_t(tiles.channels * bytes_each);
  const int width = int(std::clamp<int64_t>(most, 1, pyramid.columns.pixels));
  const int items = width * tiles.channels / at_once;
  const int threads = std::min(ceil_div(items, kWarp) * kWarp, kPoolThreads);
  return {row_of_blocks(map.images * tiles.across(map.channels) * pyramid.rows.segments, threads,
                        width * tiles.channels * bytes_each),
          tiles, width};
}

// A block reduces its tile's rows, column by column: threads own columns and channels, kCount at once. Then threads own
// the columns that a bin's cells have, and reduce what was found. What does not fit into shared memory comes in turn.
template <typename T, int kCount, typename Found>
__global__ void __launch_bounds__(kPoolThreads)
    pyramid_pool_rows_kernel(PoolInput<T> input, Found* __restrict__ parts, PoolOrder order, Pyramid pyramid,
                             PoolTiles tiles, int width) {
  Found* held = dynamic_shared<Found>();
  const PoolTile tile = tiles.tile_of(blockIdx.x, order.channels, pyramid.rows.segments);
  const PoolRange rows = pyramid.rows.segment(tile.segment);
  const T* tile_data = input.data + tile.image * input.strides[0] + tile.channel * input.strides[1];
  for (int first = 0; first < pyramid.columns.pixels; first += width) {
    const PoolHeld place{min(width, pyramid.columns.pixels - first), tile.held, tiles.channels_last};
    const int vectors = tile.held / kCount;
    for (int i = threadIdx.x; i < place.columns * vectors; i += blockDim.x) {
      const int channel = (tiles.channels_last ? i % vectors : i / place.columns) * kCount;
      const int column = tiles.channels_last ? i / vectors : i % place.columns;
      const T* from =
          tile_data + channel * input.strides[1] + rows.begin * input.strides[2] + (first + column) * input.strides[3];
      Found found[kCount];
#pragma unroll 4
      for (int y = rows.begin; y < rows.end; ++y, from += input.strides[2]) {
        const auto elements = Elements<T, kCount>::load(from);
#pragma unroll
        for (int j = 0; j < kCount; ++j)
          found[j].take(to_float(elements.values[j]), y * pyramid.columns.pixels + first + column);
      }
#pragma unroll
      for (int j = 0; j < kCount; ++j) held[place.offset(column, channel + j)] = found[j];
    }
    __syncthreads();
    const int cells = pyramid.columns.all_cells;
    for (int i = threadIdx.x; i < cells * tile.held; i += blockDim.x) {
      const int channel = tiles.channels_last ? i % tile.held : i / cells;
      const int number = tiles.channels_last ? i / tile.held : i % cells;
      const PoolCell cell = cell_of_axis(pyramid.columns, number);
      const PoolRange columns = pixels_of_cell(cell.cell, pyramid.columns.cells[cell.bin], pyramid.columns.pixels);
      Found* part = parts + order.offset(tile.image, tile.channel + channel, int64_t(tile.segment) * cells + number);
      Found found;
      if (first > 0) found = *part;
      for (int x = max(columns.begin, first); x < min(columns.end, first + place.columns); ++x)
        found.merge(held[place.offset(x - first, channel)]);
      *part = found;
    }
    __syncthreads();  // the next columns overwrite these
  }
}

// A thread owns a channel of a cell. `parts`: of each segment of rows, for each column of cells.
template <typename T, typename Found>
__global__ void __launch_bounds__(kPoolThreads)
    pyramid_pool_cells_kernel(const Found* __restrict__ parts, T* __restrict__ output, int64_t* __restrict__ indices,
                              PoolOrder parts_order, PoolOrder order, Pyramid pyramid) {
  const int64_t i = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x;
  if (i >= order.size()) return;
  const PoolPlace place = order.place(i);
  const PyramidCell cell = cell_of_pyramid(pyramid, int(place.inner));
  const int end = pyramid.rows.segment_at(cell.rows.end - 1) + 1;
  Found found;
  for (int segment = pyramid.rows.segment_at(cell.rows.begin); segment < end; ++segment)
    found.merge(parts[parts_order.offset(place.image, place.channel,
                                         int64_t(segment) * pyramid.columns.all_cells + cell.column)]);
  if constexpr (std::is_same_v<Found, Total>) {
    from_float(found.value / float(cell.rows.size() * cell.columns.size()), output[i]);
  } else {
    from_float(found.value, output[i]);
    indices[i] = found.pixel;
  }
}

}  // namespace fastseg
