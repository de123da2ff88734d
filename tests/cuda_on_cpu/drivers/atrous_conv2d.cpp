// The CUDA kernels of atrous_conv2d, launched as csrc/cuda/atrous_conv2d.cu does. Images are (N, H, W, channels),
// tables those of fastseg/ops/atrous_conv2d_tiles.py. `steps` becomes the number of steps that all tiles execute.
#include "cuda/atrous_conv2d.cuh"

#include "cpu.h"

using namespace fastseg;
using cuda_on_cpu::Array;

namespace {

template <typename T>
const T* or_null(const Array& array) {
  return array.sizes[0] ? array.as<T>() : nullptr;
}

// Calls f(Cpu, T) with the T of an array.
template <typename F>
const char* with_cpu(const Array& array, const Array& steps, F&& f) {
  return cuda_on_cpu::report([&] {
    cuda_on_cpu::steps_counted = 0;
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(array, [&](auto* elements) {
      cuda_on_cpu::Cpu cpu;
      f(cpu, std::remove_pointer_t<decltype(elements)>());
    });
    *steps.as<int64_t>() = cuda_on_cpu::steps_counted / kTileThreads;
  });
}

}  // namespace

// scale, bias and residual are empty if there is none.
DRIVER atrous_conv2d(const Array& input, const Array& weight, const Array& scale, const Array& bias,
                     const Array& residual, const Array& tiles, const Array& output, const Array& steps,
                     int64_t stride_y, int64_t stride_x, int64_t relu) {
  return with_cpu(output, steps, [&](auto& cpu, auto element) {
    using T = decltype(element);
    AtrousConv<T> p{};
    p.input = input.as<T>(), p.weight = weight.as<T>();
    p.scale = or_null<T>(scale), p.bias = or_null<T>(bias), p.residual = or_null<T>(residual);
    p.output = output.as<T>(), p.tiles = tiles.as<AtrousTile>();
    p.images = int(input.sizes[0]), p.input_height = int(input.sizes[1]), p.input_width = int(input.sizes[2]);
    p.channels = int(input.sizes[3]);
    p.height = int(output.sizes[1]), p.width = int(output.sizes[2]), p.outputs = int(output.sizes[3]);
    p.stride_y = int(stride_y), p.stride_x = int(stride_x), p.relu = relu;
    run_atrous_conv2d(cpu, p, tiles.sizes[0]);
  });
}

DRIVER atrous_conv2d_backward_weight(const Array& grad, const Array& input, const Array& parts, const Array& gradient,
                                     const Array& steps, int64_t stride_y, int64_t stride_x, int64_t count) {
  return with_cpu(gradient, steps, [&](auto& cpu, auto element) {
    using T = decltype(element);
    AtrousWeightGradient<T> p{};
    p.grad = grad.as<T>(), p.input = input.as<T>(), p.items = parts.as<AtrousPart>(), p.output = gradient.as<T>();
    p.taps = int(gradient.sizes[0]), p.count = int(count);
    p.input_height = int(input.sizes[1]), p.input_width = int(input.sizes[2]), p.channels = int(input.sizes[3]);
    p.height = int(grad.sizes[1]), p.width = int(grad.sizes[2]), p.outputs = int(grad.sizes[3]);
    p.stride_y = int(stride_y), p.stride_x = int(stride_x);
    run_atrous_conv2d_backward_weight(cpu, p);
  });
}
