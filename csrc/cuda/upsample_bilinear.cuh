// Bilinear interpolation and its gradient (fastseg/ops/upsample_bilinear.py), both bound by the large tensor's bytes.
//
// Tensors are dense and seen as planes of rows of `columns x channels` consecutive elements: channels_last as it is,
// NCHW as N C planes of one channel.
#pragma once
#include <algorithm>
#include <type_traits>

#include "bilinear.h"
#include "cuda/device.h"

namespace fastseg {

// Which consecutive elements of a row a thread takes.
enum class Vectors {
  kNone,           // one
  kAcrossColumns,  // 16 bytes, whatever columns and channels they belong to
  kWithinColumn,   // 16 bytes of channels of one column
};

// For the elements of the large tensor, whose rows all begin at 16 bytes if the first does.
inline Vectors vectors_of(int64_t channels, const Axis& columns, int per_vector, bool aligned) {
  if (!aligned) return Vectors::kNone;
  if (channels % per_vector == 0) return Vectors::kWithinColumn;
  const bool fits = columns.out * channels % per_vector == 0;
  return fits && columns.in * channels < int64_t(1) << 31 ? Vectors::kAcrossColumns : Vectors::kNone;
}

constexpr int kForwardThreads = 128;
constexpr int64_t kMostRowsPerThread = 8;           // a cell of x8: what is loaded for the first row serves all
constexpr int64_t kBusyThreads = int64_t(1) << 17;  // half of what 132 multiprocessors hold

struct ForwardShape {
  LaunchShape launch;
  int rows_per_thread;
};

// x: elements of an output row; y: groups of rows; z: planes.
inline ForwardShape forward_shape(int64_t planes, int64_t channels, const Axis& rows, const Axis& columns,
                                  int elements_per_thread, int64_t most_blocks = kMostBlocksYZ) {
  const int64_t across = columns.out * channels / elements_per_thread;
  int64_t per_thread = kMostRowsPerThread;
  while (per_thread > 1 && planes * across * rows.out < kBusyThreads * per_thread) per_thread /= 2;
  const int64_t groups = (rows.out + per_thread - 1) / per_thread;
  unsigned width = 1;
  while (width < kForwardThreads && width < across) width *= 2;
  const dim3 threads(width, kForwardThreads / width);
  const dim3 grid((across + threads.x - 1) / threads.x, std::min((groups + threads.y - 1) / threads.y, most_blocks),
                  std::min(planes, most_blocks));
  return {{grid, threads, 0}, int(per_thread)};
}

// Where consecutive elements of an output row lie between two elements each of an input row.
template <typename T, int kCount, Vectors kVectors>
class Between {
 public:
  __device__ __forceinline__ Between(const Axis& columns, int64_t channels, int64_t element) {
    int64_t first = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int64_t x = (element + j) / channels, k = (element + j) % channels, low = low_index(columns, x);
      if (j == 0) first = low * channels + k;
      left_[j] = Offset(low * channels + k - first);
      right_[j] = Offset(neighbour(columns, low) * channels + k - first);
      fraction_[j] = fraction(columns, x, low);
    }
    first_ = first;
  }

  // Interpolates along an input row.
  __device__ __forceinline__ void interpolate(const T* row, float (&result)[kCount]) const {
    const T* from = row + first_;
    if constexpr (kVectors == Vectors::kWithinColumn) {
      const auto left = Elements<T, kCount>::load(from), right = Elements<T, kCount>::load(from + right_[0]);
#pragma unroll
      for (int j = 0; j < kCount; ++j)
        result[j] = (1.0f - fraction_[0]) * to_float(left.values[j]) + fraction_[0] * to_float(right.values[j]);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j)
        result[j] = (1.0f - fraction_[j]) * to_float(from[left_[j]]) + fraction_[j] * to_float(from[right_[j]]);
    }
  }

 private:
  static constexpr int kColumns = kVectors == Vectors::kAcrossColumns ? kCount : 1;
  using Offset = std::conditional_t<kVectors == Vectors::kAcrossColumns, int32_t, int64_t>;  // vectors_of() sees to it
  int64_t first_;
  Offset left_[kColumns], right_[kColumns];
  float fraction_[kColumns];
};

// A thread owns kCount consecutive elements of a row, and as many rows as rows_per_thread says. It interpolates along
// the two input rows once for all outputs between them, so that an output costs two multiplications more and its part
// of a store. Writes each output once, in 16 bytes where rows allow; reads the small input from the caches.
// Precision: float32, rounded once.
template <typename T, int kCount, Vectors kVectors>
__global__ void __launch_bounds__(kForwardThreads)
    upsample_bilinear_kernel(const T* __restrict__ input,  // (planes, h, w, channels)
                             T* __restrict__ output,       // (planes, H, W, channels)
                             int64_t planes, int64_t channels, Axis rows, Axis columns, int rows_per_thread) {
  const int64_t in_pitch = columns.in * channels, out_pitch = columns.out * channels;
  const int64_t element = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kCount;
  if (element >= out_pitch) return;
  const Between<T, kCount, kVectors> between(columns, channels, element);
  for (int64_t plane = blockIdx.z; plane < planes; plane += gridDim.z) {
    const int64_t step = int64_t(gridDim.y) * blockDim.y * rows_per_thread;
    for (int64_t y = (int64_t(blockIdx.y) * blockDim.y + threadIdx.y) * rows_per_thread; y < rows.out; y += step) {
      float upper[kCount], lower[kCount], low = 0.0f, next = -INFINITY;  // `next`: the source that ends the cell
      T* to = output + (plane * rows.out + y) * out_pitch + element;
      for (int i = 0; i < rows_per_thread && y + i < rows.out; ++i, to += out_pitch) {
        const float at = source_of(rows, float(y + i));
        if (at >= next) {
          const int64_t cell = low_index(rows, y + i);
          const T* from = input + plane * rows.in * in_pitch;
          between.interpolate(from + cell * in_pitch, upper);
          between.interpolate(from + neighbour(rows, cell) * in_pitch, lower);
          low = float(cell);
          next = cell + 1 < rows.in ? low + 1.0f : INFINITY;
        }
        const float t = fraction_at(at, low);
        Elements<T, kCount> result;
#pragma unroll
        for (int j = 0; j < kCount; ++j) from_float((1.0f - t) * upper[j] + t * lower[j], result.values[j]);
        result.store(to);
      }
    }
  }
}

constexpr int kBackwardThreads = 256;
constexpr int kMostTileRows = 4;         // neighbouring tiles both read the rows between them: 5/4 of the gradient
constexpr int64_t kTileChannels = 32;    // 64 or 128 consecutive bytes
constexpr int64_t kSharedFloats = 8192;  // of a block: 7 of 32 KB fit a multiprocessor
constexpr int64_t kBusyBlocks = 512;     // about four per multiprocessor

// Elements of a row that a thread adds up at the same time: a vector, or as many that lie a block's threads apart.
template <typename T, bool kVectors>
constexpr int kAtOnce = kVectors ? kPerVector<T> : 4;

// Vectors across columns take whole rows of the tile, so of the tensor: no cut between channels.
inline bool backward_takes_vectors(Vectors vectors, int64_t channels) {
  return vectors == Vectors::kWithinColumn || (vectors == Vectors::kAcrossColumns && channels <= kTileChannels);
}

// The part of the small gradient that a block owns, and how many columns of the large one it holds at a time.
struct Tile {
  int rows, columns, channels, width;
};

struct BackwardShape {
  LaunchShape launch;
  Tile tile;
};

// x: tiles of columns and, within, of channels; y: tiles of rows; z: planes.
inline BackwardShape backward_shape(int64_t planes, int64_t channels, const Axis& rows, const Axis& columns,
                                    int at_once, int64_t most_blocks = kMostBlocksYZ,
                                    int64_t shared_floats = kSharedFloats) {
  auto parts = [](int64_t of, int64_t size) { return (of + size - 1) / size; };
  const int64_t tile_channels = std::min(channels, kTileChannels);
  const int64_t most = shared_floats / kMostTileRows / tile_channels;  // columns, of both gradients together
  // n inputs are read by about (n + 1) `each` outputs, which are rounded up to whole vectors at both ends.
  const double each = double(columns.out) / columns.in;
  const int64_t ends = 2 * at_once;
  int64_t tile_rows = std::min<int64_t>(kMostTileRows, rows.in);
  int64_t tile_columns = std::clamp(int64_t((most - ends - each) / (each + 1)), int64_t(1), columns.in);
  auto blocks = [&] {
    return planes * parts(rows.in, tile_rows) * parts(columns.in, tile_columns) * parts(channels, tile_channels);
  };
  while (tile_rows > 1 && blocks() < kBusyBlocks) tile_rows = parts(tile_rows, 2);
  while (tile_columns > 1 && blocks() < kBusyBlocks) tile_columns = parts(tile_columns, 2);
  const int64_t wanted = std::min(int64_t((tile_columns + 1) * each) + ends, columns.out);
  const int64_t width = parts(std::max(std::min(wanted, most - tile_columns), int64_t(1)), at_once) * at_once;
  const int64_t threads =
      std::min<int64_t>(parts(parts(width * tile_channels, at_once), kWarp) * kWarp, kBackwardThreads);
  const dim3 grid(parts(columns.in, tile_columns) * parts(channels, tile_channels),
                  std::min(parts(rows.in, tile_rows), most_blocks), std::min(planes, most_blocks));
  const Tile tile{int(tile_rows), int(tile_columns), int(tile_channels), int(width)};
  return {{grid, dim3(threads), tile.rows * (tile.width + tile.columns) * tile.channels * sizeof(float)}, tile};
}

// The outputs that read inputs first to last. Coordinates are `int` in kernels: sides end at LONGEST_SIDE.
struct Outputs {
  int begin, end;
};

__device__ __forceinline__ Outputs outputs_between(const Axis& axis, int first, int last) {
  return {int(outputs_of(axis, first).begin), int(outputs_of(axis, last).end)};
}

// Elements that a thread has loaded of one row.
template <typename T, bool kVectors>
struct Taken {
  static constexpr int kCount = kAtOnce<T, kVectors>;
  T values[kCount];

  __device__ __forceinline__ void load(const T* from, const int (&offsets)[kVectors ? 1 : kCount]) {
    if constexpr (kVectors) {
      const auto elements = Elements<T, kCount>::load(from + offsets[0]);
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = elements.values[j];
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = from[offsets[j]];
    }
  }
};

// For some elements of the large gradient's rows, out of `held` consecutive ones in columns of held_channels each, adds
// up the rows that the tile's inputs are read by:
//   sums[r * pitch + i] = sum_y U[y, first_row + r] grad[y, i]      for i = first, first + apart, ...
// Every element is read once; kAhead rows are in flight.
template <typename T, bool kVectors>
__device__ __forceinline__ void add_up_rows(const T* __restrict__ grad, int64_t grad_pitch, int64_t channels,
                                            const Axis& rows, const Outputs& read_by, int first_row, int held_rows,
                                            int held, int held_channels, int first, int apart, float* sums, int pitch) {
  constexpr int kCount = kAtOnce<T, kVectors>;
  constexpr int kAhead = kCount == 8 ? 2 : 3;  // as many as the registers hold
  int offsets[kVectors ? 1 : kCount];          // small: a tile of many channels is few columns wide
#pragma unroll
  for (int j = 0; j < (kVectors ? 1 : kCount); ++j) {
    const int i = min(first + j * apart, held - 1);  // past the end: again the last, not kept
    offsets[j] = i / held_channels * int(channels) + i % held_channels;
  }
  auto keep = [&](int row, const float (&values)[kCount]) {
    if (row < first_row || row >= first_row + held_rows) return;
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      if (kVectors || first + j * apart < held) sums[(row - first_row) * pitch + first + j * apart] = values[j];
  };
  float here[kCount] = {}, after[kCount] = {};  // the sums of rows `low` and `low + 1` so far
  for (int r = 0; r < held_rows; ++r) keep(first_row + r, here);

  int low = 0;
  float next = -INFINITY;  // the source that ends the cell
  auto finish_cell = [&](int following) {
    const bool alone = neighbour(rows, low) == low, goes_on = !alone && following == low + 1;
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      if (alone) here[j] += after[j];
    keep(low, here);
    if (!alone && !goes_on) keep(low + 1, after);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      here[j] = goes_on ? after[j] : 0.0f;
      after[j] = 0.0f;
    }
  };
  for (int y = read_by.begin; y < read_by.end; y += kAhead) {
    Taken<T, kVectors> taken[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (y + i < read_by.end) taken[i].load(grad + (y + i) * grad_pitch, offsets);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (y + i >= read_by.end) break;
      const float at = source_of(rows, float(y + i));
      if (at >= next) {
        const int following = low_at(at, int(rows.in));
        if (y + i > read_by.begin) finish_cell(following);
        low = following;
        next = low + 1 < rows.in ? float(low + 1) : INFINITY;
      }
      const float t = fraction_at(at, float(low));
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const float value = to_float(taken[i].values[j]);
        here[j] += (1.0f - t) * value;
        after[j] += t * value;
      }
    }
  }
  if (read_by.begin < read_by.end) finish_cell(low);
}

// Adds those sums up over the outputs from x to x_end that read a column: added[r] += sum_o V[o, column] sums[r, o].
__device__ __forceinline__ void add_up_columns(const float* sums, int pitch, int channels, const Axis& columns,
                                               int column, int x, int x_end, int held_rows,
                                               float (&added)[kMostTileRows]) {
  const Outputs read_by = outputs_between(columns, column, column);
  for (int o = max(read_by.begin, x); o < min(read_by.end, x_end); ++o) {
    const float at = source_of(columns, float(o));
    const int low = low_at(at, int(columns.in)), high = int(neighbour(columns, low));
    const float t = fraction_at(at, float(low));
    const float* from = sums + (o - x) * channels;
#pragma unroll
    for (int r = 0; r < kMostTileRows; ++r) {
      if (r >= held_rows) break;
      if (low == column) added[r] += (1.0f - t) * from[r * pitch];
      if (high == column) added[r] += t * from[r * pitch];
    }
  }
}

// A block owns a tile of the small gradient. First its threads take the columns (and channels) of the large gradient
// that the tile's inputs are read by, and add up the rows of each in registers, coalesced. Then they take the tile's
// own columns and add up those sums, from shared memory. Both in the order of the outputs, whatever the tile.
// Reads the large gradient once, but for the cells between tiles: 1.3 to 1.5 times from L2, about once from DRAM.
// Precision: float32, rounded once.
template <typename T, bool kVectors>
__global__ void __launch_bounds__(kBackwardThreads, 3)
    upsample_bilinear_backward_kernel(const T* __restrict__ grad,  // (planes, H, W, channels)
                                      T* __restrict__ grad_input,  // (planes, h, w, channels)
                                      int64_t planes, int64_t channels, Axis rows, Axis columns, Tile tile) {
  constexpr int kCount = kAtOnce<T, kVectors>;
  const int64_t channel_tiles = (channels + tile.channels - 1) / tile.channels;
  const int64_t first_channel = blockIdx.x % channel_tiles * tile.channels;
  const int first_column = int(blockIdx.x / channel_tiles) * tile.columns;
  const int held_channels = int(min(int64_t(tile.channels), channels - first_channel));
  const int held_columns = min(tile.columns, int(columns.in) - first_column);
  const int pitch = tile.width * tile.channels, own = held_columns * held_channels;
  float* sums_of_rows = dynamic_shared<float>();   // [tile.rows][tile.width][held_channels]
  float* sums = sums_of_rows + tile.rows * pitch;  // [tile.rows][held_columns][held_channels]
  Outputs across = outputs_between(columns, first_column, first_column + held_columns - 1);
  if (kVectors && channels % kCount != 0)  // vectors across columns begin and end at whole ones
    across = {across.begin / kCount * kCount, min((across.end + kCount - 1) / kCount * kCount, int(columns.out))};

  for (int64_t plane = blockIdx.z; plane < planes; plane += gridDim.z) {
    for (int first_row = blockIdx.y * tile.rows; first_row < rows.in; first_row += gridDim.y * tile.rows) {
      const int held_rows = min(tile.rows, int(rows.in) - first_row);
      const Outputs down = outputs_between(rows, first_row, first_row + held_rows - 1);
      for (int i = threadIdx.x; i < own; i += blockDim.x)
        for (int r = 0; r < held_rows; ++r) sums[r * own + i] = 0.0f;
      for (int x = across.begin; x < across.end; x += tile.width) {
        const int width = min(tile.width, across.end - x), held = width * held_channels;
        const T* from = grad + (plane * rows.out * columns.out + x) * channels + first_channel;
        const int step = blockDim.x * kCount, apart = kVectors ? 1 : blockDim.x;
        for (int i = threadIdx.x * (kVectors ? kCount : 1); i < held; i += step)
          add_up_rows<T, kVectors>(from, columns.out * channels, channels, rows, down, first_row, held_rows, held,
                                   held_channels, i, apart, sums_of_rows, pitch);
        __syncthreads();
        for (int i = threadIdx.x; i < own; i += blockDim.x) {
          float added[kMostTileRows];
#pragma unroll
          for (int r = 0; r < kMostTileRows; ++r) added[r] = r < held_rows ? sums[r * own + i] : 0.0f;
          add_up_columns(sums_of_rows + i % held_channels, pitch, held_channels, columns,
                         first_column + i / held_channels, x, x + width, held_rows, added);
#pragma unroll
          for (int r = 0; r < kMostTileRows; ++r)
            if (r < held_rows) sums[r * own + i] = added[r];
        }
        __syncthreads();  // the next columns, rows or plane overwrite the sums of rows
      }
      for (int i = threadIdx.x; i < own; i += blockDim.x) {
        const int64_t column = first_column + i / held_channels, channel = first_channel + i % held_channels;
        for (int r = 0; r < held_rows; ++r)
          from_float(sums[r * own + i],
                     grad_input[((plane * rows.in + first_row + r) * columns.in + column) * channels + channel]);
      }
    }
  }
}

}  // namespace fastseg
