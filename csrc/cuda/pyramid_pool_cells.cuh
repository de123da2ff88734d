// Where the cells of a pyramid lie in a map (fastseg/ops/pyramid_pool.py), for hosts and kernels. The edges of all
// bins' cells cut each axis into segments, which no cell divides. Coordinates are `int`: kMostProduct sees to it.
#pragma once
#include <algorithm>
#include <vector>

#include "cuda/device.h"

namespace fastseg {

constexpr int kPoolThreads = 256;
constexpr int kMostBins = 64, kMostSegments = 255;  // what the 4 KB of a launch's arguments hold
constexpr int64_t kMostProduct = int64_t(1) << 30;  // of an axis' pixels and a bin's cells; of height and width

struct PoolRange {
  int begin, end;

  __host__ __device__ __forceinline__ int size() const { return end - begin; }
};

// The pixels of one of `cells` cells.
__host__ __device__ __forceinline__ PoolRange pixels_of_cell(int cell, int cells, int pixels) {
  return {cell * pixels / cells, ((cell + 1) * pixels + cells - 1) / cells};
}

// The cells that hold a pixel.
__host__ __device__ __forceinline__ PoolRange cells_of_pixel(int pixel, int cells, int pixels) {
  return {pixel * cells / pixels, ((pixel + 1) * cells - 1) / pixels + 1};
}

// The rows or the columns of a map. With more segments than fit, each pixel is one.
struct PoolAxis {
  int pixels, segments, all_cells;  // all_cells: of all bins
  int cells[kMostBins];             // of each bin
  int edges[kMostSegments + 1];     // segment t has the pixels from edges[t] on, below edges[t + 1]

  __host__ __device__ __forceinline__ int edge(int segment) const {
    return segments == pixels ? segment : edges[segment];
  }
  __host__ __device__ __forceinline__ PoolRange segment(int t) const { return {edge(t), edge(t + 1)}; }

  // The segment, from `low` on, that a pixel is in.
  __host__ __device__ __forceinline__ int segment_at(int pixel, int low = 0) const {
    if (segments == pixels) return pixel;
    for (int end = segments; end - low > 1;) {
      const int middle = (low + end) / 2;
      (edges[middle] <= pixel ? low : end) = middle;
    }
    return low;
  }
};

// `longest`: no segment of the axis is longer.
inline PoolAxis pool_axis(int64_t pixels, const std::vector<int64_t>& bins, size_t axis, int longest) {
  PoolAxis result{};
  result.pixels = int(pixels);
  std::vector<int> edges{0, result.pixels};
  for (size_t k = axis; k < bins.size(); k += 2) {
    const int cells = int(bins[k]);
    result.cells[k / 2] = cells;
    result.all_cells += cells;
    for (int i = 0; i < cells; ++i) {
      const PoolRange range = pixels_of_cell(i, cells, result.pixels);
      edges.push_back(range.begin), edges.push_back(range.end);
    }
  }
  std::sort(edges.begin(), edges.end());
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
  for (size_t t = 1; t < edges.size(); ++t)
    if (edges[t] - edges[t - 1] > longest) edges.insert(edges.begin() + t, edges[t - 1] + longest);
  result.segments = int(edges.size()) - 1;
  if (result.segments > kMostSegments)
    result.segments = result.pixels;
  else
    std::copy(edges.begin(), edges.end(), result.edges);
  return result;
}

struct Pyramid {
  int bins, cells;  // cells: of all bins
  PoolAxis rows, columns;

  __device__ __forceinline__ int cells_of_bin(int bin) const { return rows.cells[bin] * columns.cells[bin]; }
};

inline Pyramid make_pyramid(const std::vector<int64_t>& size, const std::vector<int64_t>& bins) {
  const int most_rows = std::max(16, int(size[0] / 100));  // many rows are shared among blocks
  int cells = 0;
  for (size_t k = 0; k < bins.size(); k += 2) cells += int(bins[k] * bins[k + 1]);
  return {int(bins.size() / 2), cells, pool_axis(size[0], bins, 0, most_rows),
          pool_axis(size[1], bins, 1, int(size[1]))};
}

// One of all bins' cells along an axis, bin after bin.
struct PoolCell {
  int bin, cell;
};

__device__ __forceinline__ PoolCell cell_of_axis(const PoolAxis& axis, int number) {
  int bin = 0;
  while (number >= axis.cells[bin]) number -= axis.cells[bin++];
  return {bin, number};
}

// One of all bins' cells, bin after bin. `column`: among all_cells of the columns.
struct PyramidCell {
  PoolRange rows, columns;
  int column;
};

__device__ __forceinline__ PyramidCell cell_of_pyramid(const Pyramid& pyramid, int number) {
  int bin = 0, column = 0;
  for (; number >= pyramid.cells_of_bin(bin); ++bin)
    number -= pyramid.cells_of_bin(bin), column += pyramid.columns.cells[bin];
  const int across = pyramid.columns.cells[bin];
  return {pixels_of_cell(number / across, pyramid.rows.cells[bin], pyramid.rows.pixels),
          pixels_of_cell(number % across, across, pyramid.columns.pixels), column + number % across};
}

// Calls visit(number, pixels of it) for each cell that holds a pixel, in order.
template <typename Visit>
__device__ __forceinline__ void for_each_cell_at(const Pyramid& pyramid, int y, int x, Visit&& visit) {
  const PoolAxis &rows = pyramid.rows, &columns = pyramid.columns;
  for (int bin = 0, start = 0; bin < pyramid.bins; start += pyramid.cells_of_bin(bin++)) {
    const PoolRange down = cells_of_pixel(y, rows.cells[bin], rows.pixels);
    const PoolRange across = cells_of_pixel(x, columns.cells[bin], columns.pixels);
    for (int i = down.begin; i < down.end; ++i) {
      const int height = pixels_of_cell(i, rows.cells[bin], rows.pixels).size();
      for (int j = across.begin; j < across.end; ++j)
        visit(start + i * columns.cells[bin] + j,
              height * pixels_of_cell(j, columns.cells[bin], columns.pixels).size());
    }
  }
}

// One of `inners` parts of a channel of an image: a cell, say.
struct PoolPlace {
  int64_t image, channel, inner;
};

// How such parts follow one another in memory: (images, channels, inners), or with channels_last (images, inners,
// channels).
struct PoolOrder {
  int64_t images, channels, inners;
  bool channels_last;

  __host__ __device__ __forceinline__ int64_t size() const { return images * channels * inners; }

  __device__ __forceinline__ int64_t offset(int64_t image, int64_t channel, int64_t inner) const {
    return channels_last ? (image * inners + inner) * channels + channel
                         : (image * channels + channel) * inners + inner;
  }

  __device__ __forceinline__ PoolPlace place(int64_t offset) const {
    const int64_t last = channels_last ? channels : inners, a = offset % last, b = offset / last;
    return channels_last ? PoolPlace{b / inners, a, b % inners} : PoolPlace{b / channels, b % channels, a};
  }
};

// A block's share of a map: some channels of an image, as far as one segment of rows. Neighbouring threads take
// neighbours in memory.
struct PoolTile {
  int64_t image, channel;  // the first
  int held, segment;       // channels; of rows
};

struct PoolTiles {
  int channels;  // of each
  bool channels_last;

  __host__ __device__ __forceinline__ int64_t across(int64_t all) const { return ceil_div<int64_t>(all, channels); }

  __device__ __forceinline__ PoolTile tile_of(int64_t block, int64_t all_channels, int segments) const {
    const int64_t tile = block / segments, first = tile % across(all_channels) * channels;
    return {tile / across(all_channels), first, int(min(int64_t(channels), all_channels - first)),
            int(block % segments)};
  }
};

// In channels_last few channels make many blocks; else one row of all of them gives each thread of a block something.
inline PoolTiles pool_tiles(const PoolOrder& map, int columns, int segments) {
  constexpr int64_t kBusyBlocks = 1024;   // about as many as a GPU holds of them
  constexpr int kMost = 64, kLeast = 16;  // of half precision: 128 bytes, and a sector
  int channels = kMost;
  if (!map.channels_last) channels = std::max(kPoolThreads / columns, 1);
  while (map.channels_last && channels > kLeast &&
         map.images * PoolTiles{channels, true}.across(map.channels) * segments < kBusyBlocks)
    channels /= 2;
  return {int(std::min<int64_t>(channels, map.channels)), map.channels_last};
}

}  // namespace fastseg
