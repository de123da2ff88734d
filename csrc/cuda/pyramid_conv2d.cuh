// pyramid_conv2d (fastseg/ops/pyramid_conv2d.py) as a product, tile by tile:
//
//             rows                        summed over                        columns
//   output    the pixels of an image      taps, channels; then cells, taps   outputs
//
// A block owns 128 pixels of an image and 128 or 32 outputs. The larger factor never exists in memory: pixels of the
// input are gathered while they are copied to shared memory, kStages - 1 steps ahead, and so are the weights of
// interpolation multiplied there, from those along rows and along columns.
// Reads, per tile and step, 64 bytes for each of its rows and as much for its columns; writes each result once, or,
// where tiles are few, cuts the sums into float32 parts, which are added up in order. Precision: float32 sums, rounded
// once; float32 factors are not rounded to tf32. Half precision rounds the weights of interpolation, as a matrix of
// them would be.
#pragma once
#include "cuda/pyramid_conv2d_pack.cuh"
#include "cuda/pyramid_conv2d_weights.cuh"
#include "cuda/tile_steps.h"

namespace fastseg {

constexpr int kConvBlocksAtOnce = 2;  // of a multiprocessor, as registers allow
constexpr int kConvStagedRows = 64;   // of sums on their way to memory; they take the place of the stages

// Channels and `pitch`, of outputs, are whole vectors; data are aligned to 16 bytes.
template <typename T>
struct PyramidConv {
  const T* image;   // (N, rows.pixels, columns.pixels, channels)
  const T* weight;  // (kh, kw, channels, pitch)
  const T* slab;    // (N, S, kh, kw, pitch)
  const T* bias;    // (outputs) or null
  T* output;        // (N, H', W', outputs) with channels_last, else (N, outputs, H', W')
  Priors priors;
  PriorWeights interpolation;
  int64_t images;
  int channels, outputs, pitch;
  bool channels_last;
  int part_count, part_steps;  // the steps that each part of a sum has of the input's; the last has the cells', too
  float* parts;                // (part_count, output), if there are several

  __host__ __device__ __forceinline__ int pixels() const { return priors.rows.outputs * priors.columns.outputs; }
  __host__ __device__ __forceinline__ int image_depth() const {
    return priors.rows.taps * priors.columns.taps * channels;
  }
  __host__ __device__ __forceinline__ int64_t elements() const { return images * outputs * pixels(); }
};

// Copies the input's pixels under the taps, step by step from row k of the weight on: each thread the same vector of
// some rows.
template <typename T>
class GatheredPixels {
 public:
  __device__ __forceinline__ GatheredPixels(const PyramidConv<T>& p, int64_t image, int first_pixel, int k)
      : p_(p),
        image_(p.image + image * p.priors.rows.pixels * p.priors.columns.pixels * p.channels),
        channel_(k + threadIdx.x % kVectors * kPerVector<T>),
        row_(0),
        column_(0) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int pixel = first_pixel + threadIdx.x / kVectors + i * kRowsAtOnce;
      y_[i] = pixel / p.priors.columns.outputs - p.priors.rows.padding;
      x_[i] = pixel % p.priors.columns.outputs - p.priors.columns.padding;
    }
    enter_tap();
  }

  __device__ __forceinline__ void copy(T* a) {
    const int rows = p_.priors.rows.pixels, columns = p_.priors.columns.pixels;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int y = y_[i] + row_, x = x_[i] + column_;
      const bool exists = row_ < p_.priors.rows.taps && unsigned(y) < unsigned(rows) && unsigned(x) < unsigned(columns);
      const int64_t pixel = int64_t(y) * columns + x;
      cp_async_16(a + (threadIdx.x / kVectors + i * kRowsAtOnce) * kPitch<T, kDepth<T>> +
                      threadIdx.x % kVectors * kPerVector<T>,
                  exists ? image_ + pixel * p_.channels + channel_ : p_.image, exists);
    }
    channel_ += kDepth<T>;
    enter_tap();
  }

 private:
  static constexpr int kVectors = kDepth<T> / kPerVector<T>, kRowsAtOnce = kTileThreads / kVectors;
  static constexpr int kRows = kTileRows / kRowsAtOnce;

  __device__ __forceinline__ void enter_tap() {
    for (; channel_ >= p_.channels && row_ < p_.priors.rows.taps; channel_ -= p_.channels)
      if (++column_ == p_.priors.columns.taps) column_ = 0, ++row_;
  }

  const PyramidConv<T>& p_;
  const T* image_;
  int y_[kRows], x_[kRows];     // under tap (0, 0)
  int channel_, row_, column_;  // of the next step; row_ and column_ of the tap
};

// Multiplies weights of interpolation, a step's columns of M from k on: each thread half of a row.
template <typename T>
__device__ __forceinline__ void interpolate(const PyramidConv<T>& p, int first_pixel, int k, T* a) {
  constexpr int kEach = kDepth<T> * kTileRows / kTileThreads;
  const int row = threadIdx.x % kTileRows, first = threadIdx.x / kTileRows * kEach, pixel = first_pixel + row;
  const int height = p.priors.rows.outputs, width = p.priors.columns.outputs;
  const float* rows = p.interpolation.rows + pixel / width;
  const float* columns = p.interpolation.columns + pixel % width;
#pragma unroll
  for (int i = first; i < first + kEach; i += kPerVector<T>) {
    Elements<T, kPerVector<T>> weights;
#pragma unroll
    for (int j = 0; j < kPerVector<T>; ++j) {
      float weight = 0.0f;
      if (k + i + j < p.priors.depth() && pixel < p.pixels()) {
        const LinePair pair = p.interpolation.pairs[k + i + j];
        weight = rows[int64_t(pair.row) * height] * columns[int64_t(pair.column) * width];
      }
      from_float(weight, weights.values[j]);
    }
    weights.store(a + row * kPitch<T, kDepth<T>> + i);
  }
}

template <typename T>
__device__ __forceinline__ void store_sum(const PyramidConv<T>& p, float sum, int output, int64_t offset) {
  from_float(p.bias != nullptr ? sum + to_float(p.bias[output]) : sum, p.output[offset]);
}

// Brings sums from registers to memory by way of shared memory, so that neighbouring threads write neighbours.
template <int kColumns, typename Sums, typename T>
__device__ __forceinline__ void store_tile(const PyramidConv<T>& p, const Sums& sums, int64_t image, int first_pixel,
                                           int first_output, int part, float* staged) {
  constexpr int kStagedPitch = kPitch<float, kColumns>;
  for (int first_row = 0; first_row < kTileRows; first_row += kConvStagedRows) {
    if (first_row > 0) __syncthreads();
    sums.each([&](int row, int column, float sum) {
      if (row / kConvStagedRows * kConvStagedRows == first_row)
        staged[row % kConvStagedRows * kStagedPitch + column] = sum;
    });
    __syncthreads();
    for (int i = threadIdx.x; i < kConvStagedRows * kColumns; i += kTileThreads) {
      const int row = p.channels_last ? i / kColumns : i % kConvStagedRows;
      const int column = p.channels_last ? i % kColumns : i / kConvStagedRows;
      const int pixel = first_pixel + first_row + row, output = first_output + column;
      if (pixel >= p.pixels() || output >= p.outputs) continue;
      const int64_t offset = p.channels_last ? (image * p.pixels() + pixel) * p.outputs + output
                                             : (image * p.outputs + output) * p.pixels() + pixel;
      const float sum = staged[row * kStagedPitch + column];
      if (p.part_count > 1)
        p.parts[part * p.elements() + offset] = sum;
      else
        store_sum(p, sum, output, offset);
    }
  }
}

template <typename T, int kColumns>
struct ConvStages {
  static constexpr int kFactorA = kTileElementsA<T, StoredBy::kRows>;
  static constexpr int kEach = kFactorA + kTileElementsB<T, kColumns>;
  static constexpr size_t kBytes = kStages * kEach * sizeof(T);
  static_assert(kBytes >= kConvStagedRows * kPitch<float, kColumns> * sizeof(float));
};

template <typename T, int kColumns>
__device__ __forceinline__ void convolve_tile(const PyramidConv<T>& p) {
  T* stages = dynamic_shared<T>();
  const int across = ceil_div(p.outputs, kColumns), down = ceil_div(p.pixels(), kTileRows);
  const int first_output = int(blockIdx.x % across) * kColumns;  // tiles side by side come one after the other
  const int first_pixel = int(blockIdx.x / across % down) * kTileRows;
  const int64_t image = blockIdx.x / across / down / p.part_count;
  const int part = int(blockIdx.x / across / down % p.part_count);
  TileSums<T, kColumns, StoredBy::kRows> sums;
  // Adds up so many steps' products. copy(k, a, b) starts the copies of the step from k on.
  const auto add_steps = [&](int k, int steps, auto&& copy) {
    const auto copy_step = [&](int stage) {
      T* a = stages + stage * ConvStages<T, kColumns>::kEach;
      copy(k, a, a + ConvStages<T, kColumns>::kFactorA);
      k += kDepth<T>;
    };
    for_each_step(steps, copy_step, [&](int stage) {
      const T* a = stages + stage * ConvStages<T, kColumns>::kEach;
      sums.add(a, a + ConvStages<T, kColumns>::kFactorA);
    });
    __syncthreads();  // what follows overwrites the stages
  };

  const int first_k = part * p.part_steps * kDepth<T>, depth = p.image_depth();
  GatheredPixels<T> pixels(p, image, first_pixel, first_k);
  add_steps(first_k, min(p.part_steps, ceil_div(depth - first_k, kDepth<T>)), [&](int k, T* a, T* b) {
    pixels.copy(a);
    copy_rows<T, kColumns>(b, p.weight, first_output, k, depth, p.pitch, p.pitch - first_output);
  });
  if (part == p.part_count - 1) {
    const int cells_depth = p.priors.depth();
    const T* slab = p.slab + image * cells_depth * p.pitch;
    add_steps(0, ceil_div(cells_depth, kDepth<T>), [&](int k, T* a, T* b) {
      interpolate(p, first_pixel, k, a);
      copy_rows<T, kColumns>(b, slab, first_output, k, cells_depth, p.pitch, p.pitch - first_output);
    });
  }
  store_tile<kColumns>(p, sums, image, first_pixel, first_output, part, reinterpret_cast<float*>(stages));
}

// By what multiplies: FMA units (float32) or tensor cores.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, kConvBlocksAtOnce) pyramid_conv2d_fma_kernel(PyramidConv<T> p) {
  convolve_tile<T, kColumns>(p);
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, kConvBlocksAtOnce) pyramid_conv2d_mma_kernel(PyramidConv<T> p) {
  convolve_tile<T, kColumns>(p);
}

template <typename T>
__global__ void __launch_bounds__(kSumThreads) pyramid_conv2d_sum_kernel(PyramidConv<T> p) {
  const int64_t i = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= p.elements()) return;
  const float sum = sum_of_parts(p.parts, p.part_count, p.elements(), i);
  store_sum(p, sum, int(p.channels_last ? i % p.outputs : i / p.pixels() % p.outputs), i);
}

// The parts that sums of so many steps are cut into: as many as still run at once.
inline int parts_of_sums(int64_t tiles, int steps, int64_t busy_blocks) {
  constexpr int kLeastSteps = 8;  // of a part: its sums are written and read once more
  return int(std::max<int64_t>(std::min<int64_t>(busy_blocks / tiles, steps / kLeastSteps), 1));
}

template <int kColumns, typename T, typename Device>
void launch_convolution(Device& device, PyramidConv<T> p) {
  const int64_t tiles = p.images * ceil_div(p.pixels(), kTileRows) * ceil_div(p.outputs, kColumns);
  const int steps = ceil_div(p.image_depth(), kDepth<T>);
  p.part_steps = ceil_div(steps, parts_of_sums(tiles, steps, kConvBlocksAtOnce * device.multiprocessors));
  p.part_count = ceil_div(steps, p.part_steps);
  if (p.part_count > 1) p.parts = device.template scratch<float>(p.part_count * p.elements());
  const LaunchShape shape = row_of_blocks(tiles * p.part_count, kTileThreads, ConvStages<T, kColumns>::kBytes);
  if constexpr (std::is_same_v<T, float>)
    device.launch(shape, pyramid_conv2d_fma_kernel<T, kColumns>, p);
  else
    device.launch(shape, pyramid_conv2d_mma_kernel<T, kColumns>, p);
  if (p.part_count > 1)
    device.launch(row_of_blocks(ceil_div<int64_t>(p.elements(), kSumThreads), kSumThreads),
                  pyramid_conv2d_sum_kernel<T>, p);
}

// `p` lacks what follows from the weight, and the tables.
template <typename T, typename Device>
void run_pyramid_conv2d(Device& device, PyramidConv<T> p, const T* weight, const WeightPacking& packing) {
  p.weight = packed_weight(device, weight, packing);
  p.channels = packing.padded_channels, p.outputs = packing.outputs, p.pitch = packing.padded_outputs;
  p.interpolation = make_weights(device, p.priors);
  if (p.outputs <= 32)  // of 21 classes or so
    launch_convolution<32>(device, p);
  else
    launch_convolution<128>(device, p);
}

}  // namespace fastseg
