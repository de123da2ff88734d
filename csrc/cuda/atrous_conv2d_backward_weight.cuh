// The gradient of atrous_conv2d's weight (fastseg/ops/atrous_conv2d.py) as a product per tap, by a table of parts of
// its sum (fastseg/ops/atrous_conv2d_tiles.py):
//
//                    rows                 summed over                        columns
//   grad_weight      128 channels         pixels of the tap's region         128 or 32 outputs
//
// Both factors are stored by pixel. Blocks start in the order of the table, longest parts first. Parts of a sum are
// float32 and added up in order.
#pragma once
#include "cuda/atrous_conv2d_stages.cuh"

namespace fastseg {

// A row of the table: PART_FIELDS of fastseg/ops/atrous_conv2d_tiles.py.
struct AtrousPart {
  int first, stop, top, left, height, width, input_y, input_x, tap, part;
};

// The pixels of a region in an image (N, height, width, channels): region's (y, x) is at (top + y step_y, ...).
template <typename T>
struct RegionOf {
  const T* image;
  int height, width, channels, top, left, step_y, step_x;
};

// Channels and outputs are whole vectors; data are aligned to 16 bytes.
template <typename T>
struct AtrousWeightGradient {
  const T* grad;   // (N, height, width, outputs)
  const T* input;  // (N, input_height, input_width, channels)
  const AtrousPart* items;
  T* output;     // (taps, channels, outputs)
  float* parts;  // (count, output) or null, if there is one
  int taps, count, input_height, input_width, channels, height, width, outputs, stride_y, stride_x;

  __host__ __device__ __forceinline__ int64_t elements() const { return int64_t(taps) * channels * outputs; }
};

// Copies kElements channels of kDepth<T> pixels of a region per step: each thread the same vector of some pixels.
template <typename T, int kElements>
class RegionCopies {
 public:
  __device__ __forceinline__ RegionCopies(const AtrousPart& part, const RegionOf<T>& region, int first_channel)
      : region_(region),
        channel_(first_channel + threadIdx.x % kVectors * kPerVector<T>),
        pixel_(part.first + int(threadIdx.x) / kVectors),
        step_(position_at(kDepth<T>, part.height, part.width)) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) at_[i] = position_at(pixel_ + i * kPixelsAtOnce, part.height, part.width);
  }

  __device__ __forceinline__ void copy(const AtrousPart& part, T* tile) {
    const int row = threadIdx.x / kVectors;
    if (row >= kDepth<T>) return;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const bool exists = pixel_ + i * kPixelsAtOnce < part.stop && channel_ < region_.channels;
      const int y = region_.top + at_[i].y * region_.step_y, x = region_.left + at_[i].x * region_.step_x;
      const int64_t pixel = (int64_t(at_[i].image) * region_.height + y) * region_.width + x;
      cp_async_16(tile + (row + i * kPixelsAtOnce) * kPitch<T, kElements> + threadIdx.x % kVectors * kPerVector<T>,
                  exists ? region_.image + pixel * region_.channels + channel_ : region_.image, exists);
      advance(at_[i], step_, part.height, part.width);
    }
    pixel_ += kDepth<T>;
  }

 private:
  static constexpr int kVectors = kElements / kPerVector<T>, kPixelsAtOnce = kTileThreads / kVectors;
  static constexpr int kPixels = kDepth<T> > kPixelsAtOnce ? kDepth<T> / kPixelsAtOnce : 1;
  const RegionOf<T> region_;
  const int channel_;
  int pixel_;  // the first of the next step
  Position at_[kPixels], step_;
};

// Each thread the same vector of outputs of some channels.
template <int kColumns, typename T, typename Out>
__device__ __forceinline__ void store_gradient(const AtrousWeightGradient<T>& p, int first_channel, int first_output,
                                               const float* sums, Out* of_tap) {
  constexpr int kCount = kPerVector<Out>, kVectors = kColumns / kCount;
  const int column = threadIdx.x % kVectors * kCount;
  if (first_output + column >= p.outputs) return;
  for (int row = threadIdx.x / kVectors; row < min(kTileRows, p.channels - first_channel);
       row += kTileThreads / kVectors) {
    Elements<Out, kCount> rounded;
#pragma unroll
    for (int i = 0; i < kCount; ++i) from_float(sums[row * kPitch<float, kColumns> + column + i], rounded.values[i]);
    rounded.store(of_tap + int64_t(first_channel + row) * p.outputs + first_output + column);
  }
}

template <typename T, int kColumns>
__device__ __forceinline__ void multiply_part(const AtrousWeightGradient<T>& p) {
  const int across = ceil_div(p.outputs, kColumns), down = ceil_div(p.channels, kTileRows);
  const int first_output = int(blockIdx.x % across) * kColumns;  // neighbours read the same pixels
  const int first_channel = int(blockIdx.x / across % down) * kTileRows;
  const AtrousPart part = p.items[blockIdx.x / across / down];
  RegionCopies<T, kTileRows> input(
      part, {p.input, p.input_height, p.input_width, p.channels, part.input_y, part.input_x, p.stride_y, p.stride_x},
      first_channel);
  RegionCopies<T, kColumns> grad(part, {p.grad, p.height, p.width, p.outputs, part.top, part.left, 1, 1}, first_output);
  TileSums<T, kColumns, StoredBy::kK> sums;
  add_steps(sums, ceil_div(part.stop - part.first, kDepth<T>), [&](T* a, T* b) {
    input.copy(part, a);
    grad.copy(part, b);
  });
  const float* rows = staged(sums);
  const int64_t of_tap = int64_t(part.tap) * p.channels * p.outputs;
  if (p.parts != nullptr)
    store_gradient<kColumns>(p, first_channel, first_output, rows, p.parts + part.part * p.elements() + of_tap);
  else
    store_gradient<kColumns>(p, first_channel, first_output, rows, p.output + of_tap);
}

// By what multiplies: FMA units (float32) or tensor cores.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, kAtrousBlocksAtOnce<kColumns>)
    atrous_conv2d_backward_weight_fma_kernel(AtrousWeightGradient<T> p) {
  multiply_part<T, kColumns>(p);
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, kAtrousBlocksAtOnce<kColumns>)
    atrous_conv2d_backward_weight_mma_kernel(AtrousWeightGradient<T> p) {
  multiply_part<T, kColumns>(p);
}

template <typename T>
__global__ void __launch_bounds__(kSumThreads) atrous_conv2d_sum_kernel(AtrousWeightGradient<T> p) {
  const int64_t i = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i < p.elements()) from_float(sum_of_parts(p.parts, p.count, p.elements(), i), p.output[i]);
}

template <int kColumns, typename T, typename Device>
void launch_parts(Device& device, const AtrousWeightGradient<T>& p) {
  const int64_t blocks = int64_t(p.taps) * p.count * ceil_div(p.channels, kTileRows) * ceil_div(p.outputs, kColumns);
  const auto shape = row_of_blocks(blocks, kTileThreads, AtrousStages<T, kColumns, StoredBy::kK>::kBytes);
  if constexpr (std::is_same_v<T, float>)
    device.launch(shape, atrous_conv2d_backward_weight_fma_kernel<T, kColumns>, p);
  else
    device.launch(shape, atrous_conv2d_backward_weight_mma_kernel<T, kColumns>, p);
}

// `p` lacks the parts.
template <typename T, typename Device>
void run_atrous_conv2d_backward_weight(Device& device, AtrousWeightGradient<T> p) {
  if (p.count > 1) p.parts = device.template scratch<float>(p.count * p.elements());
  if (p.outputs <= 32)
    launch_parts<32>(device, p);
  else
    launch_parts<128>(device, p);
  if (p.count > 1)
    device.launch(row_of_blocks(ceil_div<int64_t>(p.elements(), kSumThreads), kSumThreads), atrous_conv2d_sum_kernel<T>,
                  p);
}

}  // namespace fastseg
