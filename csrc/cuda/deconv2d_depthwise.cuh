// deconv2d and its gradients where each channel is a group of its own (as is the case of a diagonal weight): nothing is
// shared between channels, and every kernel is bound by memory.
#pragma once
#include "cuda/deconv2d_pack.cuh"

namespace fastseg {

constexpr int kDepthwiseThreads = 256;
constexpr int kMostBases = 16;      // of a thread: it finds its place and weights once for all of them
constexpr int kBusyThreads = 1024;  // half of what a multiprocessor holds

// A channel's weights are `weight_steps` apart: of channels, ky, kx.
template <typename T>
struct Depthwise {
  View<T> image;  // (N, C, H, W), what is summed over
  const T* weight;
  int64_t weight_steps[3];
  const T *bias, *skip;
  T* output;
  DeconvSide y, x;
  bool channels_last;  // the order of outputs
};

template <typename T, int kCount>
__device__ __forceinline__ void load_floats(const T* from, bool exists, float (&to)[kCount]) {
  if (exists) {
    const auto elements = Elements<T, kCount>::load(from);
#pragma unroll
    for (int j = 0; j < kCount; ++j) to[j] = to_float(elements.values[j]);
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j) to[j] = 0.0f;
  }
}

template <typename T>
__device__ __forceinline__ void load_float(const T* from, int64_t offset, bool exists, float& to) {
  to = exists ? to_float(from[offset]) : 0.0f;
}

// A thread owns kCount channels of an output column, and the rows of one phase for some bases.
// Where a phase has up to two neighbouring taps (kernel <= 2 stride, dilation 1) it holds its weights and one row of
// inputs in registers: bound by the bytes of the output.
template <typename T, int kCount, bool kTwoTaps>
__global__ void __launch_bounds__(kDepthwiseThreads)
    deconv2d_depthwise_kernel(Depthwise<T> p, PhaseRange rows, PhaseRange columns, int bases_per_thread) {
  const int channels = int(p.image.sizes[1]), across = p.channels_last ? channels : 1;
  const int64_t elements = int64_t(columns.bases) * columns.count * across / kCount;
  const int64_t blocks_across = ceil_div<int64_t>(elements, kDepthwiseThreads);
  const int64_t element = (blockIdx.x % blocks_across * kDepthwiseThreads + threadIdx.x) * kCount;
  if (element >= elements * kCount) return;
  const int groups_of_bases = ceil_div(rows.bases, bases_per_thread);
  const int64_t above = blockIdx.x / blocks_across, plane = above / groups_of_bases / rows.count;
  const int first = int(above % groups_of_bases) * bases_per_thread, end = min(first + bases_per_thread, rows.bases);
  const int phase_y = int(above / groups_of_bases % rows.count), phase_x = int(element / across % columns.count);
  const int base_x = columns.first_base + int(element / across / columns.count);
  const int x = base_x * p.x.stride + p.x.offset(phase_x) - p.x.start;
  if (unsigned(x) >= unsigned(p.x.out)) return;
  const int64_t image = p.channels_last ? plane : plane / channels;
  const int64_t channel = p.channels_last ? element % across : plane % channels;
  const int64_t x_step = across, y_step = x_step * p.x.out;
  const int64_t to_column = plane * p.y.out * y_step + x * x_step + (p.channels_last ? channel : 0);
  const int taps_y = p.y.taps(phase_y), taps_x = p.x.taps(phase_x);
  const T* from = p.image.data + image * p.image.strides[0] + channel * p.image.strides[1];
  const T* weight = p.weight + channel * p.weight_steps[0] + phase_y * p.weight_steps[1] + phase_x * p.weight_steps[2];
  float bias[kCount];
  load_floats(p.bias + channel, p.bias != nullptr, bias);

  // The weight of a tap; and the input of row from_y, with `row` pointing at its base_x, that tap_x multiplies. 0 where
  // there is none.
  auto weight_of = [&](int tap_y, int tap_x, float (&to)[kCount]) {
    load_floats(weight + tap_y * p.y.period * p.weight_steps[1] + tap_x * p.x.period * p.weight_steps[2],
                tap_y < taps_y && tap_x < taps_x, to);
  };
  auto input = [&](int from_y, const T* row, int tap_x, float (&to)[kCount]) {
    const int back = tap_x * p.x.reach;
    load_floats(row - back * p.image.strides[3],
                tap_x < taps_x && unsigned(from_y) < unsigned(p.y.in) && unsigned(base_x - back) < unsigned(p.x.in),
                to);
  };
  int base_y = rows.first_base + first, y = base_y * p.y.stride + p.y.offset(phase_y) - p.y.start;
  const T* row = from + base_y * p.image.strides[2] + base_x * p.image.strides[3];
  int64_t offset = to_column + y * y_step;
  auto store_and_move_on = [&](const float (&sums)[kCount]) {
    if (unsigned(y) < unsigned(p.y.out)) {
      float skip[kCount];
      load_floats(p.skip + offset, p.skip != nullptr, skip);
      Elements<T, kCount> rounded;
#pragma unroll
      for (int j = 0; j < kCount; ++j) from_float(sums[j] + bias[j] + skip[j], rounded.values[j]);
      rounded.store(p.output + offset);
    }
    ++base_y, row += p.image.strides[2];
    y += p.y.stride, offset += p.y.stride * y_step;
  };

  if constexpr (kTwoTaps) {
    float weights[2][2][kCount], inputs[2][2][kCount] = {};  // by tap
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) weight_of(tap / 2, tap % 2, weights[tap / 2][tap % 2]);
    if (taps_y > 1)
#pragma unroll
      for (int tap_x = 0; tap_x < 2; ++tap_x) input(base_y - 1, row - p.image.strides[2], tap_x, inputs[1][tap_x]);
    for (int base = first; base < end; ++base) {
      float sums[kCount];
      if (taps_y > 0)
#pragma unroll
        for (int tap_x = 0; tap_x < 2; ++tap_x) input(base_y, row, tap_x, inputs[0][tap_x]);
#pragma unroll
      for (int j = 0; j < kCount; ++j)
        sums[j] = weights[0][0][j] * inputs[0][0][j] + weights[0][1][j] * inputs[0][1][j] +
                  weights[1][0][j] * inputs[1][0][j] + weights[1][1][j] * inputs[1][1][j];
      store_and_move_on(sums);
      if (taps_y > 1)
#pragma unroll
        for (int i = 0; i < 2 * kCount; ++i) inputs[1][i / kCount][i % kCount] = inputs[0][i / kCount][i % kCount];
    }
  } else {
    for (int base = first; base < end; ++base) {
      float sums[kCount] = {};
      for (int tap_y = 0; tap_y < taps_y; ++tap_y)
        for (int tap_x = 0; tap_x < taps_x; ++tap_x) {
          float weights[kCount], inputs[kCount];
          weight_of(tap_y, tap_x, weights);
          input(base_y - tap_y * p.y.reach, row - tap_y * p.y.reach * p.image.strides[2], tap_x, inputs);
#pragma unroll
          for (int j = 0; j < kCount; ++j) sums[j] += weights[j] * inputs[j];
        }
      store_and_move_on(sums);
    }
  }
}

constexpr int kTermsAtOnce = 4;  // of a thread: their loads are under way at the same time

// Adds up `terms` products for each threadIdx.x; threads of equal threadIdx.x share them, in a fixed order. The sum is
// for the one with threadIdx.y == 0. factors(at, exists, a, b) sets the factors at a position of images of the given
// size: both to 0 if !exists, which adds nothing, were others inf.
template <typename Factors>
__device__ __forceinline__ float sum_products(int64_t terms, int height, int width, Factors&& factors) {
  const Position step = position_at(blockDim.y, height, width);
  Position at = position_at(threadIdx.y, height, width);
  float sum = 0.0f;
  for (int64_t term = threadIdx.y; term < terms;) {
    float a[kTermsAtOnce], b[kTermsAtOnce];
#pragma unroll
    for (int i = 0; i < kTermsAtOnce; ++i, term += blockDim.y, advance(at, step, height, width))
      factors(at, term < terms, a[i], b[i]);
#pragma unroll
    for (int i = 0; i < kTermsAtOnce; ++i) sum += a[i] * b[i];
  }
  float* sums = dynamic_shared<float>();
  const int mine = threadIdx.y * blockDim.x + threadIdx.x;
  sums[mine] = sum;
  for (int apart = blockDim.y / 2; apart > 0; apart /= 2) {
    __syncthreads();
    if (int(threadIdx.y) < apart) sums[mine] += sums[mine + apart * blockDim.x];
  }
  return sums[mine];
}

// Threads (elements, parts of their sums). `neighbours` elements next to each other read neighbours in memory; so do
// neighbouring terms of a sum.
inline LaunchShape reduction_shape(int64_t elements, int64_t terms, int64_t neighbours) {
  unsigned parts = 1;
  while (parts * 2 <= kDepthwiseThreads && parts * 4 <= terms &&
         kDepthwiseThreads / (parts * 2) >= std::min<int64_t>(neighbours, kWarp))
    parts *= 2;
  const dim3 threads(kDepthwiseThreads / parts, parts);
  return row_of_blocks(ceil_div<int64_t>(elements, threads.x), threads, kDepthwiseThreads * sizeof(float));
}

// A column of threads owns an element of the input's gradient and cuts its sum over taps. `image` is the output's.
template <typename T>
__global__ void __launch_bounds__(kDepthwiseThreads)
    deconv2d_depthwise_backward_input_kernel(Depthwise<T> p, int64_t elements) {
  const int64_t element = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, channels = p.image.sizes[1];
  const int64_t pixel = p.channels_last ? element / channels : element;
  const int start_x = int(pixel % p.x.in) * p.x.stride - p.x.start;
  const int start_y = int(pixel / p.x.in % p.y.in) * p.y.stride - p.y.start;
  const int64_t plane = pixel / p.x.in / p.y.in;
  const int64_t image = p.channels_last ? plane : plane / channels;
  const int64_t channel = p.channels_last ? element % channels : plane % channels;
  const int64_t first_grad = image * p.image.strides[0] + channel * p.image.strides[1];
  const int64_t first_weight = channel * p.weight_steps[0], terms = int64_t(p.y.kernel) * p.x.kernel;
  const float sum = sum_products(
      element < elements ? terms : 0, p.y.kernel, p.x.kernel,
      [&](const Position& tap, bool exists, float& grad, float& weight) {
        const int y = start_y + tap.y * p.y.dilation, x = start_x + tap.x * p.x.dilation;
        exists = exists && unsigned(y) < unsigned(p.y.out) && unsigned(x) < unsigned(p.x.out);
        load_float(p.image.data, first_grad + y * p.image.strides[2] + x * p.image.strides[3], exists, grad);
        load_float(p.weight, first_weight + tap.y * p.weight_steps[1] + tap.x * p.weight_steps[2], exists, weight);
      });
  if (threadIdx.y == 0 && element < elements) from_float(sum, p.output[element]);
}

// A column of threads owns an element of the weight's gradient (C, 1, ky, kx) and cuts its sum over input pixels.
template <typename T>
__global__ void __launch_bounds__(kDepthwiseThreads)
    deconv2d_depthwise_backward_weight_kernel(Depthwise<T> p, View<T> input, int64_t elements) {
  const int64_t element = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, channels = input.sizes[1];
  const int taps = p.y.kernel * p.x.kernel;
  const int64_t channel = p.channels_last ? element % channels : element / taps;
  const int tap = int(p.channels_last ? element / channels : element % taps);
  const int start_y = tap / p.x.kernel * p.y.dilation - p.y.start;
  const int start_x = tap % p.x.kernel * p.x.dilation - p.x.start;
  const int64_t first_grad = channel * p.image.strides[1], first_input = channel * input.strides[1];
  const int64_t terms = input.sizes[0] * p.y.in * p.x.in;
  const float sum = sum_products(
      element < elements ? terms : 0, p.y.in, p.x.in, [&](const Position& at, bool exists, float& grad, float& factor) {
        const int64_t grads = first_grad + at.image * p.image.strides[0],
                      inputs = first_input + at.image * input.strides[0];
        const int y = start_y + at.y * p.y.stride, x = start_x + at.x * p.x.stride;
        exists = exists && unsigned(y) < unsigned(p.y.out) && unsigned(x) < unsigned(p.x.out);
        load_float(p.image.data, grads + y * p.image.strides[2] + x * p.image.strides[3], exists, grad);
        load_float(input.data, inputs + at.y * input.strides[2] + at.x * input.strides[3], exists, factor);
      });
  if (threadIdx.y == 0 && element < elements) from_float(sum, p.output[channel * taps + tap]);
}

// Weights with neighbouring channels where the channels of an image are neighbours.
template <typename T, typename Device>
void set_weight(Device& device, Depthwise<T>& p, const View<T>& weight) {
  const int64_t *sizes = weight.sizes, *strides = weight.strides;
  if (p.channels_last) {
    const int pitch = whole_vectors<T>(sizes[0]);
    p.weight = pack(device, weight.data,
                    {{1, 1, sizes[2], sizes[3]},
                     {0, 0, strides[2], strides[3]},
                     int(sizes[3]),
                     {1, 1, int(sizes[0])},
                     {0, 0, strides[0]},
                     pitch});
    p.weight_steps[0] = 1, p.weight_steps[1] = sizes[3] * pitch, p.weight_steps[2] = pitch;
  } else {
    p.weight = weight.data;
    p.weight_steps[0] = strides[0], p.weight_steps[1] = strides[2], p.weight_steps[2] = strides[3];
  }
}

template <typename T, int kCount, bool kTwoTaps, typename Device>
void launch_depthwise(Device& device, const Depthwise<T>& p) {
  const PhaseRange rows = phase_range(p.y, 0, p.y.stride), columns = phase_range(p.x, 0, p.x.stride);
  const int64_t across = p.channels_last ? p.image.sizes[1] : 1, planes = p.image.sizes[0] * p.image.sizes[1] / across;
  const int64_t elements = int64_t(columns.bases) * columns.count * across / kCount;
  int each = kMostBases;
  const int64_t busy = int64_t(device.multiprocessors) * kBusyThreads;
  while (each > 1 && planes * elements * rows.count * rows.bases < busy * each) each /= 2;
  each = ceil_div(rows.bases, ceil_div(rows.bases, each));  // as many for every thread
  const int64_t blocks =
      ceil_div<int64_t>(elements, kDepthwiseThreads) * ceil_div(rows.bases, each) * rows.count * planes;
  device.launch(row_of_blocks(blocks, kDepthwiseThreads), deconv2d_depthwise_kernel<T, kCount, kTwoTaps>, p, rows,
                columns, each);
}

// bias and skip may be null; skip is dense as the output is.
template <typename T, typename Device>
void depthwise_forward(Device& device, const Deconv& call, const View<T>& input, const View<T>& weight, const T* bias,
                       const T* skip, T* output) {
  Depthwise<T> p{input, nullptr, {}, bias, skip, output, call.y, call.x, call.channels_last};
  set_weight(device, p, weight);
  bool vectors = call.channels_last && input.strides[1] == 1 && call.all_channels() % kPerVector<T> == 0 &&
                 is_aligned(input.data) && is_aligned(bias) && is_aligned(skip) && is_aligned(output);
  for (int axis : {0, 2, 3}) vectors &= input.strides[axis] % kPerVector<T> == 0;
  const bool two_taps = std::max(call.y.taps(0), call.x.taps(0)) <= 2 && call.y.reach == 1;
  if (vectors && two_taps)
    launch_depthwise<T, kPerVector<T>, true>(device, p);
  else if (two_taps)
    launch_depthwise<T, 1, true>(device, p);
  else
    launch_depthwise<T, 1, false>(device, p);
}

template <typename T, typename Device>
void depthwise_backward_input(Device& device, const Deconv& call, const View<T>& grad, const View<T>& weight,
                              T* grad_input) {
  Depthwise<T> p{grad, nullptr, {}, nullptr, nullptr, grad_input, call.y, call.x, call.channels_last};
  set_weight(device, p, weight);
  const int64_t elements = call.images * call.all_channels() * call.y.in * call.x.in;
  device.launch(
      reduction_shape(elements, int64_t(call.y.kernel) * call.x.kernel, call.channels_last ? call.all_channels() : 1),
      deconv2d_depthwise_backward_input_kernel<T>, p, elements);
}

template <typename T, typename Device>
void depthwise_backward_weight(Device& device, const Deconv& call, const View<T>& grad, const View<T>& input,
                               T* grad_weight) {
  const Depthwise<T> p{grad, nullptr, {}, nullptr, nullptr, grad_weight, call.y, call.x, call.channels_last};
  const int64_t elements = call.all_channels() * call.y.kernel * call.x.kernel;
  device.launch(reduction_shape(elements, call.images * call.y.in * call.x.in,
                                call.channels_last ? call.all_channels() : call.x.kernel),
                deconv2d_depthwise_backward_weight_kernel<T>, p, input, elements);
}

}  // namespace fastseg
